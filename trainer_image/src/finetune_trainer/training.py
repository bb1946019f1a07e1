"""Pipeline from a TrainingConfig to a committed adapter.

    from pathlib import Path
    from finetune_trainer.config import load_config
    from finetune_trainer.training import FinetuningPipeline

    outcome = FinetuningPipeline(load_config(Path("support-tone.yaml"))).run()
    print(outcome.adapter.path, outcome.metrics["train_loss"])

`run()` is the table of contents: each step is a method that takes and returns values, so it can be called and inspected on
its own. A run raises `errors.TrainingError` for every expected failure. It can be interrupted at any moment and started again
with the same configuration: it resumes from the newest complete checkpoint, and ends with the same adapter (on a CPU bit for
bit) as an uninterrupted run.
"""

import datetime as dt
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import Outcome
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_model.process import resume_garbage_collection
from finetune_trainer.dataset import (
    Examples,
    PreparedDataset,
    log_report,
    prepare_dataset,
    read_examples,
    token_cache,
)
from finetune_trainer.errors import TrainingError
from finetune_trainer.evaluation.answer_metrics import MetricResults, check_metrics
from finetune_trainer.evaluation.prompts import check_prompts
from finetune_trainer.evaluation.scoring import score_predictions
from finetune_trainer.loop.position import TrainingPosition
from finetune_trainer.model import base_model
from finetune_trainer.model.chat_template import chat_settings, recorded_chat
from finetune_trainer.model.continuation import continue_from_earlier
from finetune_trainer.model.fingerprint import take_fingerprint
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.model.lora import build_lora_config
from finetune_trainer.model.quantization import served_weights
from finetune_trainer.reporting.progress import LogReporter, Reporter
from finetune_trainer.reporting.run_record import (
    TrainingResult,
    make_manifest,
    make_outcome,
    make_record,
    write_records,
)
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.store.output import check_output
from finetune_trainer.store.run_store import Committed, RunStore

if TYPE_CHECKING:
    from peft import PeftModel

    from finetune_trainer.batches.layout import BatchLayout

logger = logging.getLogger(__name__)


class FinetuningPipeline:
    """One run. Its attributes are fixed at the start; the results of each step are passed on as values."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        reporter: Reporter | None = None,
        stop: StopSignal | None = None,
        run_id: str | None = None,
    ) -> None:
        """`run_id` names the adapter's folder of a run without a job; by default it is the time."""
        self.config = config
        self.reporter = reporter or LogReporter()
        self.stop = stop or StopSignal()
        self.run_id = config.job.uid if config.job else run_id or new_run_id()
        self.store = RunStore(
            Path(config.output.directory),
            config.output.adapter_name,
            self.run_id,
            config.job.attempt if config.job else 1,
        )
        self.position: TrainingPosition | None = None
        """Position of the training; None until it starts."""

    def run(self) -> Outcome:
        """Run all steps, or report the adapter that an earlier attempt of the same job committed."""
        if committed := self.store.committed_adapter():
            logger.info("adapter is already committed path=%s", committed.path)
            self.cleanup(sweep=True)
            return self.report(committed)
        check_output(self.config)
        check_metrics(self.config)
        examples = self.read_examples()
        self.store.open()
        base = self.load_base_model()
        dataset = self.tokenize(examples, base)
        model = self.add_lora(base)
        layout = self.choose_layout(model, base, dataset)
        trained = self.train(model, base, dataset, layout)
        metrics = trained.metrics | self.evaluate(model, dataset, layout, on_gpu=base.on_gpu)
        scores = self.score_predictions(model, base, dataset)
        results = MetricResults(scores.values | metrics, scores.problems)
        fingerprint = self.take_fingerprint(model, base)
        committed = self.save_adapter(model, base, examples, dataset, fingerprint, trained, results)
        self.cleanup()
        return self.report(committed)

    def run_worker_rank(self) -> None:
        """Run a rank other than 0: its shard of each step and of each evaluation. It writes nothing."""
        if self.store.committed_adapter():
            return
        examples = self.read_examples()
        base = self.load_base_model()
        dataset = self.tokenize(examples, base)
        model = self.add_lora(base)
        layout = self.choose_layout(model, base, dataset)
        self.train(model, base, dataset, layout)
        self.evaluate(model, dataset, layout, on_gpu=base.on_gpu)

    def cleanup(self, *, sweep: bool = False) -> None:
        """Remove checkpoints, which a committed adapter does not need; an error of the volume is only logged.

        `sweep` also removes what an earlier attempt left half-written.
        """
        try:
            if sweep:
                self.store.open()
            self.store.remove_checkpoints()
        except OSError as error:
            logger.warning("leftovers not removed problem=%s", error)

    def read_examples(self) -> Examples:
        """Read and check all rows; needs neither model nor torch."""
        return distributed.main_process_first(lambda: read_examples(self.config))

    def load_base_model(self) -> BaseModel:
        """Locate and load the model and its tokenizer."""
        self._check_stop()
        started = time.monotonic()
        folder = base_model.locate_files(self.config.model)
        with ThreadPoolExecutor(max_workers=1) as executor:
            # Hash files while transformers is imported, which takes longer and uses one thread.
            hashing = executor.submit(base_model.revision_of, self.config.model, folder)
            base_model.quiet_libraries()
            revision = hashing.result()
        precision, quantization = self.config.hyperparameters.precision, self.config.lora.quantization
        base = base_model.load(self.config.model, folder, revision, precision, quantization, self.config.chat)
        resume_garbage_collection()
        logger.info(
            "base model loaded model=%s revision=%s dtype=%s device=%s parameters=%d seconds=%.1f",
            self.config.model.source or self.config.model.path,
            revision[:24],
            base.dtype,
            "cuda" if base.on_gpu else "cpu",
            base.model.num_parameters(),
            time.monotonic() - started,
        )
        return base

    def tokenize(self, examples: Examples, base: BaseModel) -> PreparedDataset:
        """Render rows with the chat template, tokenize and label them, and log the dataset report."""
        self._check_stop()
        cache = token_cache(self.config)
        dataset = distributed.main_process_first(
            lambda: prepare_dataset(
                self.config, examples, base.tokenizer, base.model.config, cache=cache, check_stop=self._check_stop
            )
        )
        distributed.assert_same_on_all_ranks(examples.digest, "rows")
        log_report(dataset.report)
        check_prompts(self.config, dataset)
        return dataset

    def add_lora(self, base: BaseModel) -> "PeftModel":
        """Add an adapter to the base model: an earlier one, or a new one, which has no effect until it is trained."""
        self._check_stop()
        from peft import get_peft_model
        from transformers import set_seed

        lora_config = build_lora_config(
            self.config.lora, base.model, base_name=self.config.model.path, base_revision=base.revision
        )
        set_seed(self.config.hyperparameters.seed)
        model = get_peft_model(base.model, lora_config)
        self.config = continue_from_earlier(self.config, model, base.revision)
        if base.on_gpu:
            # The Trainer would move it later, but the steps before training need the device that training uses.
            model = model.to("cuda")
        trainable, total = model.get_nb_trainable_parameters()
        logger.info("adapter added rank=%d trainable=%d of=%d", self.config.lora.rank, trainable, total)
        return model

    def choose_layout(self, model: "PeftModel", base: BaseModel, dataset: PreparedDataset) -> "BatchLayout":
        """Choose the packed layout if a few rows confirm on every rank that results stay the same, else the padded one."""
        from finetune_trainer.batches.layout import PaddedLayout, choose_layout

        layout = choose_layout(model, base, dataset.training.rows)
        if len(set(distributed.all_gather(layout.name))) > 1:
            layout = PaddedLayout(base)
        logger.info("batch layout chosen layout=%s", layout.name)
        return layout

    def train(
        self, model: "PeftModel", base: BaseModel, dataset: PreparedDataset, layout: "BatchLayout"
    ) -> TrainingResult:
        """Train from the newest complete checkpoint, or from the start, and leave the best adapter in the model."""
        self._check_stop()
        from finetune_trainer.loop.assemble import assemble_training

        self.position = TrainingPosition()
        training = assemble_training(
            self.config,
            model,
            base,
            dataset,
            layout,
            store=self.store,
            reporter=self.reporter,
            stop=self.stop,
            position=self.position,
        )
        return training.run(distributed.broadcast_from_main(self.store.newest_checkpoint), self.stop)

    def evaluate(
        self, model: "PeftModel", dataset: PreparedDataset, layout: "BatchLayout", *, on_gpu: bool
    ) -> dict[str, float]:
        """Measure loss and configured metrics on the held-out rows; empty without such rows.

        Raises TrainingError (LossDiverged, Interrupted).
        """
        from finetune_trainer.loop.objectives import choose_objective

        held_out = choose_objective(self.config, dataset, layout).make_held_out(on_gpu=on_gpu)
        if held_out is None:
            return {}
        with layout.applied(model):
            metrics = held_out.measure(model, self.stop)
        self._check_stop()
        if broken := [name for name, value in (metrics or {}).items() if not math.isfinite(value)]:
            raise TrainingError(
                Reason.LOSS_DIVERGED,
                f"{broken[0]} on the held-out rows is not finite after training. Lower hyperparameters.learningRate; a retry "
                "would end the same way.",
            )
        return {name: round(value, 6) for name, value in (metrics or {}).items()}

    def score_predictions(self, model: "PeftModel", base: BaseModel, dataset: PreparedDataset) -> MetricResults:
        """Score generated answers to held-out rows; a failed metric does not end the run."""
        return score_predictions(self.config, model, base, dataset, self._check_stop)

    def take_fingerprint(self, model: "PeftModel", base: BaseModel) -> Fingerprint:
        """Record log-probabilities that verify later that an endpoint serves this adapter."""
        fingerprint = take_fingerprint(
            model, base.tokenizer, base.dtype, served_weights(base), chat_settings(self.config.chat)
        )
        logger.info("fingerprint taken probes=%d effect=%.4f", len(fingerprint.probes), fingerprint.effect)
        return fingerprint

    def save_adapter(
        self,
        model: "PeftModel",
        base: BaseModel,
        examples: Examples,
        dataset: PreparedDataset,
        fingerprint: Fingerprint,
        trained: TrainingResult,
        results: MetricResults,
    ) -> Committed:
        """Write adapter, tokenizer, records and manifest into staging, and commit them."""
        staging = self.store.stage_adapter()
        # Without copies of the base model's embeddings, which peft adds beside tuned ones.
        model.save_pretrained(staging, save_embedding_layers=False)
        base.tokenizer.save_pretrained(staging)
        record = make_record(self.config, base, examples, trained, results)
        write_records(staging, self.config.output.adapter_name, record, dataset.report, fingerprint, trained)
        chat = recorded_chat(self.config.chat, dataset.end_tokens)
        manifest = make_manifest(self.config, base, trained.best_step or trained.step, chat)
        committed = self.store.commit_adapter(manifest)
        logger.info("adapter committed path=%s digest=%s", committed.path, committed.digest[:19])
        return committed

    def report(self, committed: Committed) -> Outcome:
        """Build the Outcome of a committed adapter from its files, so that every attempt reports the same one."""
        trained_tokens = self.position.trained_tokens if self.position else None
        return make_outcome(committed, Path(self.config.output.directory), trained_tokens)

    def _check_stop(self) -> None:
        self.stop.check("Stopped outside the training loop; no trained step was lost.")


def new_run_id() -> str:
    """Return a name for a run without a job: the time, to the second."""
    return dt.datetime.now(dt.UTC).strftime("%Y%m%dt%H%M%Sz")
