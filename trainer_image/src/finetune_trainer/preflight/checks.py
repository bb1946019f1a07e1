"""Checks of a run that need neither an accelerator nor the weights.

Each check is as independent as possible, so that one mistake does not hide another: a bad row and a wrong target module are
reported together.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_model.base_digest import WEIGHT_FILES
from finetune_model.model_files import resolve_precision
from finetune_model.process import memory_capacity
from finetune_model.servable import AdapterLayout, listed
from finetune_model.token_ids import tokens_without_embedding
from finetune_trainer.batches.batching import choose_micro_batch_size
from finetune_trainer.batches.packing import GPU_MIN_SHARED_TOKENS, MIN_SHARED_TOKENS
from finetune_trainer.config import SourceSettings
from finetune_trainer.data import TokenCache
from finetune_trainer.dataset import Examples, PreparedDataset, model_length, prepare_dataset, read_examples
from finetune_trainer.errors import TrainingError
from finetune_trainer.evaluation.answer_metrics import check_metrics
from finetune_trainer.evaluation.prompts import check_prompts
from finetune_trainer.memory.estimate import estimate_disk, gib, largest_pass
from finetune_trainer.memory.plan import MemoryPlan, plan_memory
from finetune_trainer.model import base_model
from finetune_trainer.model.chat_template import apply_chat, chat_settings
from finetune_trainer.model.continuation import read_initial_adapter
from finetune_trainer.model.fingerprint import PROMPTS, prompt_ids
from finetune_trainer.model.lora import plan_adapter
from finetune_trainer.model.quantization import check_quantization
from finetune_trainer.preflight.weights import count_weights
from finetune_trainer.reporting.tracking.checks import check_trackers
from finetune_trainer.store.output import check_output, free_disk

MAX_LAYERS: Final = 1000
"""Most layers of a model, several times those of any existing one, because building each takes time even without weights."""
COMPLETE_SHARE: Final = 0.98
"""Share of the model's parameters that its files must hold; some files omit computed ones."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class ModelShape:
    """Model on the meta device: shapes without weights."""

    model: Any
    tokenizer: Any
    folder: Path
    revision: str
    adapter: AdapterLayout
    """Tensors of the adapter."""

    @property
    def trainable(self) -> int:
        """Number of parameters of the adapter."""
        return self.adapter.parameters


@dataclass
class Preflight:
    """Findings of a preflight."""

    failures: list[TrainingError] = field(default_factory=list)
    """Reasons why the run would fail, one per failed check; empty if it may start."""
    warnings: list[str] = field(default_factory=list)
    """Settings that are allowed but probably mistakes."""
    examples: Examples | None = None
    shape: ModelShape | None = None
    dataset: PreparedDataset | None = None
    memory: MemoryPlan | None = None
    disk: int | None = None
    """Bytes that the run writes to the output volume."""

    @property
    def verdict(self) -> TrainingError | None:
        """Merge all failures into one, with the reason of the first that no retry can fix; None if the run may start."""
        if not self.failures:
            return None
        first = next((failure for failure in self.failures if not failure.retryable), self.failures[0])
        others = [f"Also {failure.reason}: {failure.message}" for failure in self.failures if failure is not first]
        message = ". ".join(text.removesuffix(".") for text in [first.message, *others])
        return TrainingError(first.reason, message, retryable=first.retryable)

    def attempt(self, check: Callable[[], Value]) -> Value | None:
        """Return the check's result; if it fails, record the failure and return None."""
        try:
            return check()
        except TrainingError as error:
            self.failures.append(error)
            return None


def run_preflight(
    config: TrainingConfig,
    *,
    gpu_memory: int | None = None,
    sources: SourceSettings | None = None,
    cache: TokenCache | None = None,
) -> Preflight:
    """Run every check; `gpu_memory` is the memory in bytes of the accelerator that will train, if any (0: unknown).

    Writes only downloads, and tokens into the cache if there is one.
    """
    found = Preflight()
    found.examples = found.attempt(lambda: read_examples(config, sources))
    found.shape = found.attempt(lambda: check_model(config))
    found.attempt(lambda: check_output(config))
    found.attempt(lambda: check_trackers(config))
    found.attempt(lambda: check_metrics(config))
    if found.shape is None:
        return found
    shape = found.shape
    if shape.adapter.idle:
        found.warnings.append(
            f"{len(shape.adapter.idle)} of {len(shape.adapter.scalings)} modules of method.lora.targetModules learn nothing, "
            f"because a text does not pass them: {listed(shape.adapter.idle)}; name others"
        )
    if initial := config.initial_adapter:
        found.attempt(lambda: read_initial_adapter(initial, config.lora, shape.revision, shape.adapter.tensors))
    length = model_length(shape.model.config)
    if length is not None and length < config.hyperparameters.max_length:
        found.warnings.append(
            f"hyperparameters.maxLength={config.hyperparameters.max_length} is more than the {length} tokens that the model "
            f"has positions for; rows are cut to {length}"
        )
    if found.examples is None:
        return found
    examples = found.examples
    found.dataset = found.attempt(
        lambda: prepare_dataset(config, examples, shape.tokenizer, shape.model.config, cache=cache)
    )
    if found.dataset is None:
        return found
    dataset = found.dataset
    found.attempt(lambda: check_prompts(config, dataset))
    memory = found.memory = found.attempt(lambda: _plan_memory(config, shape, dataset, gpu_memory))
    disk = found.disk = estimate_disk(config, shape.trainable, shape.folder, dataset)
    if memory:
        found.attempt(lambda: check_memory(memory, found.warnings, on_gpu=gpu_memory is not None))
    found.attempt(lambda: check_disk(config, disk))
    return found


def check_model(config: TrainingConfig) -> ModelShape:
    """Check files, tokenizer, architecture and target modules, with the model on torch's meta device (no memory).

    Raises TrainingError (ModelNotFound, ModelAccessDenied, ModelInvalid, SpecInvalid, TargetModulesNotFound).
    """
    shown = config.model.source or config.model.path
    base_model.quiet_libraries()
    folder = base_model.locate_files(config.model, weights=False)
    model_config = base_model.read_config(folder, shown)
    check_quantization(config.lora.quantization, model_config)
    tokenizer = base_model.read_tokenizer(folder, shown)
    apply_chat(tokenizer, config.chat)
    model = _on_meta_device(model_config, shown)
    _check_probes_fit(config, tokenizer, model, shown)
    _check_weights_complete(folder, model, shown)
    revision = base_model.revision_of(config.model, folder)
    return ModelShape(model, tokenizer, folder, revision, plan_adapter(config.lora, model))


def check_memory(plan: MemoryPlan, warnings: list[str], *, on_gpu: bool) -> None:
    """Raise TrainingError (WontFitGPU, HostOutOfMemory) if not even weights and adapter fit; warn if the estimated peak does not."""
    memory, limit = plan.estimate, plan.limit
    if limit is None:
        return
    where = "the accelerator" if on_gpu else "this container or machine"
    if memory.least > limit:
        reason = Reason.WONT_FIT_GPU if on_gpu else Reason.HOST_OUT_OF_MEMORY
        raise TrainingError(
            reason,
            f"Weights and adapter alone need about {gib(memory.least)}, but {where} has {gib(limit)}; raise the limit, or use "
            "a smaller model, method.lora.quantization nf4, hyperparameters.precision bfloat16 or a lower method.lora.rank",
        )
    if memory.total > limit:
        warnings.append(
            f"training needs about {memory}, but {where} has {gib(limit)}; raise resources.memory, or lower "
            "hyperparameters.microBatchSize or maxLength"
        )


def check_disk(config: TrainingConfig, needed: int) -> None:
    """Raise TrainingError (StorageFull) if adapter and checkpoints will not fit."""
    if config.job is not None and config.job.attempt > 1:
        return  # an earlier attempt's checkpoints are a part of what is needed
    free = free_disk(Path(config.output.directory))
    if needed > free:
        raise TrainingError(
            Reason.STORAGE_FULL,
            f"Adapter and checkpoints need about {gib(needed)}, but {config.output.directory} has {gib(free)} free; enlarge "
            "output.claim, or lower method.lora.rank or checkpoint.keep",
            retryable=True,
        )


def _plan_memory(
    config: TrainingConfig, shape: ModelShape, dataset: PreparedDataset, gpu_memory: int | None
) -> MemoryPlan:
    from finetune_trainer.batches.layout import PackedLayout
    from finetune_trainer.kernels.attention import supports_packing

    on_gpu, hyper = gpu_memory is not None, config.hyperparameters
    answers = 2 if config.dpo else 1
    # A model's claim to support packing is accepted here; training verifies it.
    layout = PackedLayout(GPU_MIN_SHARED_TOKENS if on_gpu else MIN_SHARED_TOKENS)
    row_tokens = answers * layout.row_tokens(dataset.training.rows, answers * hyper.batch_size)
    micro = choose_micro_batch_size(row_tokens, hyper.batch_size, hyper.micro_batch_size, on_gpu=on_gpu)
    largest = largest_pass(config, dataset, micro, packed=supports_packing(shape.model), on_gpu=on_gpu)
    dtype = resolve_precision(hyper.precision, on_gpu=on_gpu)
    limit = memory_capacity() if gpu_memory is None else gpu_memory or None
    return plan_memory(config, shape.model, shape.trainable, dtype, largest, limit)


def _on_meta_device(model_config: Any, shown: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    layers = getattr(model_config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
        raise base_model.model_invalid(shown, f"its config.json says num_hidden_layers={layers!r}")
    with base_model.as_model_invalid(shown), torch.device("meta"):
        return AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)


def _check_probes_fit(config: TrainingConfig, tokenizer: Any, model: Any, shown: str) -> None:
    """Raise TrainingError (ModelInvalid) if the chat template writes a token that the model has no embedding for.

    The fingerprint's prompts are rendered by it at the end of training, whatever the rows are.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    settings = chat_settings(config.chat)
    ids = [token for prompt in PROMPTS for token in prompt_ids(tokenizer, prompt, settings)]
    if unknown := tokens_without_embedding(ids, rows, tokenizer):
        raise base_model.model_invalid(
            shown,
            f"its tokenizer or chat template writes the token {unknown}, the model has embeddings for {rows} tokens",
        )


def _check_weights_complete(folder: Path, model: Any, shown: str) -> None:
    if not any(folder.glob(WEIGHT_FILES)):
        return  # still at the hub
    stored = count_weights(folder, shown)
    expected = sum(parameter.numel() for parameter in model.parameters())
    # Quantized weights are packed: several numbers of the model are one number of the file.
    if getattr(model.config, "quantization_config", None) is None and stored < COMPLETE_SHARE * expected:
        raise base_model.model_invalid(
            shown, f"its safetensors hold {stored} numbers, its config.json describes a model of {expected}"
        )
