"""Memory that runs out: the step is taken again in smaller passes, and the run ends as if nothing had happened."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.outcome import MicroBatching, Outcome, Result
from finetune_api.reasons import Reason
from finetune_trainer.errors import is_out_of_memory
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from lab.fixtures.reporters import AtStep, RecordingReporter
from lab.fixtures.tiny_model import as_jsonl, chat_rows
from lab.fixtures.training_runs import a_training_config, an_attempt

pytestmark = pytest.mark.model

PAIRS = [{"prompt": f"Question {n}?", "chosen": f"Yes, {n}.", "rejected": f"No, not {n}."} for n in range(8)]


@contextmanager
def a_device_of(tokens: int, error: Any, *, recomputed: int | None = None, first_step: int = 1) -> Iterator[list[int]]:
    """A model whose first layer has no memory for the gradients of more than so many tokens; yields the sizes refused.

    With gradient checkpointing there is room for `recomputed` tokens. It fails in the backward pass, when the layers behind it
    have added to their gradients already, and from the `first_step`th optimizer step on.
    """
    import torch
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    refused: list[int] = []
    forward = LlamaDecoderLayer.forward
    steps = 0

    def narrow(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        result = forward(self, x, *args, **kwargs)
        if self.self_attn.layer_idx == 0 and self.training and result.requires_grad and steps + 1 >= first_step:
            size = x.shape[0] * x.shape[1]
            room = recomputed if recomputed is not None and is_checkpointing[0] else tokens

            def fail(grad: Any) -> Any:
                if size > room:
                    refused.append(size)
                    raise error
                return grad

            result.register_hook(fail)
        return result

    is_checkpointing = [False]
    from finetune_trainer.memory import out_of_memory

    recompute, step = out_of_memory.recompute_activations, torch.optim.AdamW.step

    def noted(model: Any) -> None:
        is_checkpointing[0] = True
        recompute(model)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaDecoderLayer, "forward", narrow)
        patch.setattr(out_of_memory, "recompute_activations", noted)
        patch.setattr(torch.optim.AdamW, "step", counted)
        yield refused


def accelerator_error() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def host_error() -> Exception:
    return RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to …"
    )


def a_config(model: Path, output: Path, /, **changes: Any) -> Any:
    hyperparameters = {"batchSize": 8, "microBatchSize": 8, "learningRate": 0.01, "maxSteps": 6}
    hyperparameters |= changes.pop("hyperparameters", {})
    sections = {"dataset": {"inline": as_jsonl(chat_rows(16))}, **changes}
    return a_training_config(model, output, hyperparameters=hyperparameters, **sections)


def record_of(config: Any, outcome: Outcome) -> dict[str, Any]:
    assert outcome.adapter is not None, outcome
    record: dict[str, Any] = json.loads(
        (Path(config.output.directory) / outcome.adapter.path / "run.json").read_text(encoding="utf-8")
    )
    return record


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (accelerator_error, {}),
        (host_error, {"dpo": {}, "dataset": {"inline": as_jsonl(PAIRS)}}),
        (MemoryError, {"lora": {"useDora": True}}),
    ],
    ids=["supervised", "dpo", "dora"],
)
def test_a_step_that_ran_out_of_memory_is_taken_again_in_smaller_passes_with_the_same_result(
    tiny_model: Path, tmp_path: Path, error: Any, changes: dict[str, Any]
) -> None:
    undisturbed, healed = RecordingReporter(), RecordingReporter()
    expected = run_finetuning(a_config(tiny_model, tmp_path / "a", **changes), undisturbed, StopSignal())
    config = a_config(tiny_model, tmp_path / "b", **changes)
    with a_device_of(100, error(), first_step=3) as refused:
        outcome = run_finetuning(config, healed, StopSignal())

    assert outcome.result is expected.result is Result.SUCCEEDED, outcome
    assert refused, "memory never ran out, so nothing was shown"
    assert healed.losses == pytest.approx(undisturbed.losses, abs=1e-5)
    assert outcome.trained_tokens == expected.trained_tokens
    assert [healed.micro_batching[step].micro_batch_size for step in (1, 2)] == [8, 8]
    assert outcome.passes is not None
    assert outcome.passes == healed.micro_batching[6]
    assert outcome.passes.micro_batch_size < 8
    reductions = record_of(config, outcome)["outOfMemory"]
    assert len(reductions) == outcome.passes.reductions
    assert reductions[0] == {
        "step": 3,
        "passes": {"microBatchSize": 4, "gradientCheckpointing": False, "reductions": 1},
    }
    page = (Path(config.output.directory) / str(outcome.adapter and outcome.adapter.path) / "report.html").read_text()
    assert "step 3, repeated with micro-batches of 4 rows" in page


def test_at_one_row_activations_are_computed_again(tiny_model: Path, tmp_path: Path) -> None:
    undisturbed, healed = RecordingReporter(), RecordingReporter()
    run_finetuning(a_config(tiny_model, tmp_path / "a"), undisturbed, StopSignal())
    with a_device_of(4, accelerator_error(), recomputed=1000):
        outcome = run_finetuning(a_config(tiny_model, tmp_path / "b"), healed, StopSignal())
    assert outcome.passes == MicroBatching(micro_batch_size=1, gradient_checkpointing=True, reductions=4)
    assert healed.losses == pytest.approx(undisturbed.losses, abs=1e-5)


@pytest.mark.parametrize(
    ("error", "reason", "setting"),
    [
        (accelerator_error, Reason.CUDA_OUT_OF_MEMORY, "auto"),
        (host_error, Reason.HOST_OUT_OF_MEMORY, "disabled"),
    ],
)
def test_a_run_that_not_even_the_smallest_passes_fit_fails_with_what_to_change(
    tiny_model: Path, tmp_path: Path, error: Any, reason: Reason, setting: str
) -> None:
    config = a_config(tiny_model, tmp_path, hyperparameters={"gradientCheckpointing": setting})
    with a_device_of(4, error()) as refused:
        outcome = run_finetuning(config, RecordingReporter(), StopSignal())
    assert (outcome.result, outcome.reason, outcome.retryable) == (Result.FAILED, reason, False)
    assert "maxLength" in outcome.message
    assert len(refused) == (5 if setting == "auto" else 4)


def test_other_errors_are_not_taken_for_memory(tiny_model: Path, tmp_path: Path) -> None:
    with a_device_of(4, RuntimeError("shapes do not match")) as refused:
        outcome = run_finetuning(a_config(tiny_model, tmp_path), RecordingReporter(), StopSignal())
    assert outcome.reason is Reason.TRAINER_CRASHED
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        (
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
            True,
        ),
        ("std::bad_alloc", True),
        ("could not create a primitive", True),
        ("could not create a primitive descriptor for a matmul primitive", False),
    ],
)
def test_what_libraries_say_when_the_kernel_refuses_memory_is_known(text: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is is_memory


def test_a_resumed_attempt_starts_with_what_fitted(tiny_model: Path, tmp_path: Path) -> None:
    """Interrupted or not, a run that ran out of memory ends with the same bytes."""
    config = a_config(tiny_model, tmp_path / "whole")
    with a_device_of(100, accelerator_error()):
        whole = run_finetuning(config, RecordingReporter(), StopSignal())

    stop = StopSignal()
    with a_device_of(100, accelerator_error()):
        interrupted = run_finetuning(a_config(tiny_model, tmp_path / "parts"), AtStep(3, stop.request), stop)
        assert interrupted.reason is Reason.INTERRUPTED
    losses = RecordingReporter()
    with a_device_of(100, accelerator_error()) as refused:
        config = a_config(tiny_model, tmp_path / "parts", job=an_attempt(2))
        resumed = run_finetuning(config, losses, StopSignal())
    assert refused == []
    assert losses.micro_batching[4] == whole.passes
    assert record_of(config, resumed)["outOfMemory"][0]["step"] == 1
    files = [tmp_path / part / "support-tone/uid-1/adapter_model.safetensors" for part in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


IN_A_CONTAINER = """
import sys
from pathlib import Path
from finetune_api.training import TrainingConfig
from finetune_model import process
from finetune_trainer.training import FinetuningPipeline

def used():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) << 10

config, limit_file, room = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
pipeline = FinetuningPipeline(TrainingConfig.model_validate_json(Path(config).read_text()))
pipeline.store.open()
base = pipeline.load_base_model()
dataset = pipeline.tokenize(pipeline.read_examples(), base)
model = pipeline.add_lora(base)
layout = pipeline.choose_layout(model, base, dataset)
if room:
    limit_file.write_text(str(int((used() + room) / 0.97)))
process.MEMORY_LIMITS = (limit_file,)
trained = pipeline.train(model, base, dataset, layout)
print(trained.micro_batching.to_dict() | {"losses": [loss for _, loss in trained.losses]})
"""
"""A training in a container that has `room` bytes more than are used when training starts; 0 for a container without a limit."""


def test_a_container_s_limit_is_kept_to_by_a_real_refusal_of_the_kernel(tiny_model: Path, tmp_path: Path) -> None:
    """A pass of all rows takes more than 300 MiB of activations and logits; there is room for half of it."""
    rows = as_jsonl([{"prompt": f"{n} " * 100, "completion": f"{n + 1} " * 100} for n in range(64)])
    found = []
    for name, room in (("free", 0), ("limited", 160 << 20)):
        hyperparameters = {"batchSize": 64, "microBatchSize": 64, "learningRate": 0.01, "maxSteps": 2}
        config = a_training_config(
            tiny_model, tmp_path / name, dataset={"inline": rows}, hyperparameters=hyperparameters
        )
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(config.to_dict()))
        command = [sys.executable, "-c", IN_A_CONTAINER, str(file), str(tmp_path / f"{name}.limit"), str(room)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(ast.literal_eval(done.stdout.splitlines()[-1]))
    free, limited = found
    assert (free["microBatchSize"], free["reductions"]) == (64, 0)
    assert limited["reductions"] > 0
    assert limited["losses"] == pytest.approx(free["losses"], abs=1e-5)


def test_the_sizes_in_a_checkpoint_of_an_earlier_release_are_found() -> None:
    """The key is in every checkpoint on somebody's volume: a resumed run that missed it would exceed memory again."""
    from finetune_trainer.memory.out_of_memory import MicroBatchSizes

    kept = {"step": 3, "passes": {"microBatchSize": 1, "gradientCheckpointing": False}}
    state = SimpleNamespace(stateful_callbacks={"PassSizes": [kept]})
    planned = MicroBatching(micro_batch_size=8, gradient_checkpointing=False)
    base = SimpleNamespace(gradient_checkpointing_disable=lambda: None, supports_gradient_checkpointing=False)
    sizes = MicroBatchSizes(planned, "disabled", SimpleNamespace(get_base_model=lambda: base))
    sizes.on_train_begin(None, state, None)
    assert sizes.current.micro_batch_size == 1
