"""FinetuningPipeline: from a TrainingConfig to a committed adapter.

    from pathlib import Path
    from finetune_trainer.config import load_config
    from finetune_trainer.training import FinetuningPipeline

    outcome = FinetuningPipeline(load_config(Path("support-tone.yaml"))).run()
    print(outcome.adapter.path, outcome.metrics["train_loss"])

`run()` is the table of contents: each step is a method that takes and returns values, so it can be called and looked at on
its own. A run raises `errors.TrainingError` and nothing that it planned for otherwise. It can be interrupted at any moment
and started again with the same configuration: it goes on from the newest whole checkpoint and ends with the same adapter,
bit for bit on a CPU, as a run that was never interrupted.
"""

import datetime as dt
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import MicroBatching, Outcome
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_model.process import resume_garbage_collection
from finetune_trainer.batches.batching import StepSampler, choose_micro_batch_size
from finetune_trainer.data.report import DatasetReport
from finetune_trainer.dataset import (
    Examples,
    PreparedDataset,
    log_report,
    prepare_dataset,
    read_examples,
    token_cache,
)
from finetune_trainer.errors import TrainingError
from finetune_trainer.evaluation.answer_metrics import Measured, check_metrics, generated_metrics, measure
from finetune_trainer.evaluation.prompts import check_questions, find_questions
from finetune_trainer.memory.estimate import MemoryPlan, available_memory, largest_pass, plan_memory
from finetune_trainer.model import base_model
from finetune_trainer.model.continuation import continue_from_earlier
from finetune_trainer.model.fingerprint import take_fingerprint
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.model.lora import build_lora_config
from finetune_trainer.model.quantization import served_weights
from finetune_trainer.reporting.progress import LogReporter, Reporter
from finetune_trainer.reporting.run_record import Trained, make_manifest, make_outcome, make_record, write_records
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.store.output import check_output
from finetune_trainer.store.run_store import Committed, RunStore

if TYPE_CHECKING:
    from finetune_trainer.batches.layout import BatchLayout
    from finetune_trainer.loop.position import TrainingPosition

logger = logging.getLogger(__name__)


class FinetuningPipeline:
    """One run. Holds what is fixed from the start; everything made on the way is passed from step to step."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        reporter: Reporter | None = None,
        stop: StopSignal | None = None,
        run_id: str | None = None,
    ) -> None:
        """`run_id` names the adapter's folder of a run that belongs to no job; by default it is the time."""
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
        self.reached: TrainingPosition | None = None
        """How far training is, once it has started."""

    def run(self) -> Outcome:
        """Do all of it, or report the adapter that an earlier attempt of the same job committed."""
        if committed := self.store.committed_adapter():
            logger.info("adapter is committed already path=%s", committed.path)
            self.cleanup(sweep=True)
            return self.report(committed)
        check_output(self.config)
        check_metrics(self.config)
        examples = self.read_examples()
        self.store.open()
        base = self.load_base_model()
        dataset = self.tokenize(examples, base)
        model = self.add_lora(base)
        passes = self.choose_layout(model, base, dataset)
        trained = self.train(model, base, dataset, passes)
        metrics = trained.metrics | self.evaluate(model, dataset, passes, on_gpu=base.on_gpu)
        answered = self.score_answers(model, base, dataset)
        measured = Measured(answered.values | metrics, answered.problems)
        fingerprint = self.take_fingerprint(model, base)
        committed = self.save_adapter(model, base, examples, dataset.report, fingerprint, trained, measured)
        self.cleanup()
        return self.report(committed)

    def run_worker_rank(self) -> None:
        """What every rank but the first does: its share of each step and of each evaluation. It writes nothing."""
        if self.store.committed_adapter():
            return
        examples = self.read_examples()
        base = self.load_base_model()
        dataset = self.tokenize(examples, base)
        model = self.add_lora(base)
        passes = self.choose_layout(model, base, dataset)
        self.train(model, base, dataset, passes)
        self.evaluate(model, dataset, passes, on_gpu=base.on_gpu)

    def cleanup(self, *, sweep: bool = False) -> None:
        """Remove what a committed adapter has no use for; a volume that refuses changes nothing.

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
        """Find and load the model and its tokenizer."""
        self._check_stop()
        started = time.monotonic()
        folder = base_model.locate_files(self.config.model)
        with ThreadPoolExecutor(max_workers=1) as hashing:
            # Beside the import of transformers, which takes longer and is one thread's work.
            found = hashing.submit(base_model.revision_of, self.config.model, folder)
            base_model.quiet_libraries()
            revision = found.result()
        precision, quantization = self.config.hyperparameters.precision, self.config.lora.quantization
        base = base_model.load(self.config.model, folder, revision, precision, quantization)
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
        """Render rows with the chat template, mark tokens with loss, and log what became of the dataset."""
        self._check_stop()
        cache = token_cache(self.config)
        dataset = distributed.main_process_first(
            lambda: prepare_dataset(
                self.config, examples, base.tokenizer, base.model.config, cache=cache, between=self._check_stop
            )
        )
        distributed.assert_same_on_all_ranks(examples.digest, "rows")
        log_report(dataset.report)
        check_questions(self.config, dataset)
        return dataset

    def add_lora(self, base: BaseModel) -> Any:
        """The base model with an adapter: an earlier one, or an untrained one, which changes nothing as one matrix is zero."""
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
            # Before the Trainer would: what comes first should see the device that training is on.
            model = model.to("cuda")
        trainable, total = model.get_nb_trainable_parameters()
        logger.info("adapter added rank=%d trainable=%d of=%d", self.config.lora.rank, trainable, total)
        return model

    def choose_layout(self, model: Any, base: BaseModel, dataset: PreparedDataset) -> "BatchLayout":
        """How rows go through this model: packed, if a few of them show that it makes no difference."""
        from finetune_trainer.batches.layout import PaddedLayout, choose_layout

        passes = choose_layout(model, base, dataset.training.rows)
        if len(set(distributed.all_gather(passes.name))) > 1:
            passes = PaddedLayout(base)
        logger.info("rows go through the model passes=%s", passes.name)
        return passes

    def plan_memory(
        self, model: Any, base: BaseModel, dataset: PreparedDataset, passes: "BatchLayout", micro_batch_size: int
    ) -> MemoryPlan:
        """Whether activations are kept or computed again, by what this device has."""
        import torch

        largest = largest_pass(
            self.config, dataset, micro_batch_size, packed=passes.name == "packed", on_gpu=base.on_gpu
        )
        trainable, _ = model.get_nb_trainable_parameters()
        limit = torch.cuda.mem_get_info()[1] if base.on_gpu else available_memory() // distributed.world_size()
        plan = plan_memory(self.config, base.model, trainable, base.dtype, largest, limit)
        logger.info("memory planned gradient_checkpointing=%s why=%s", plan.gradient_checkpointing, plan.explanation)
        return plan

    def train(self, model: Any, base: BaseModel, dataset: PreparedDataset, passes: "BatchLayout") -> Trained:
        """Run transformers.Trainer from the newest whole checkpoint, or from the start."""
        self._check_stop()
        from finetune_trainer.evaluation.evaluation import BestAdapter, EvaluationCallback, held_out_curve
        from finetune_trainer.loop import step_trainer as stock
        from finetune_trainer.loop.checkpoints import CheckpointSaver
        from finetune_trainer.loop.divergence import DivergenceCallback
        from finetune_trainer.loop.objectives import choose_objective
        from finetune_trainer.loop.position import TrainingPosition
        from finetune_trainer.memory.out_of_memory import MicroBatchSizes, host_limit

        hyper = self.config.hyperparameters
        objective = choose_objective(self.config, dataset, passes)
        rows, passes = objective.rows, objective.passes
        micro = choose_micro_batch_size(
            passes.row_tokens(rows, hyper.batch_size), hyper.batch_size, hyper.micro_batch_size, on_gpu=base.on_gpu
        )
        memory = self.plan_memory(model, base, dataset, passes, micro)
        planned = MicroBatching(micro_batch_size=micro, gradient_checkpointing=memory.gradient_checkpointing)
        sizes = MicroBatchSizes(planned, hyper.gradient_checkpointing, model, limit=host_limit())
        self.reached = TrainingPosition()
        best = BestAdapter()
        saver = CheckpointSaver(
            self.store, self.reached, make_manifest(self.config, base, 0), self.config.checkpoint.keep, best
        )
        during = self.config.evaluation_settings
        evaluations = []
        if during.eval_steps and (held_out := objective.held_out(on_gpu=base.on_gpu)):
            evaluations.append(EvaluationCallback(held_out, best, during, self.stop))
        loop = objective.trainer(
            sampler=StepSampler(passes.order(rows), hyper.batch_size, hyper.seed),
            saver=saver,
            collate=passes.collate,
            sizes=sizes,
            model=model,
            args=stock.training_arguments(self.config, base, self.store.checkpoint_staging),
            train_dataset=rows,
            callbacks=[
                sizes,
                DivergenceCallback(),
                *evaluations,
                stock.ProgressCallback(self.reporter, self.reached, sizes),
                stock.StopCallback(self.stop),
                stock.CheckpointCallback(saver, self.config.checkpoint.every_minutes * 60),
            ],
        )
        stock.silence(loop)
        checkpoint = distributed.broadcast_from_main(self.store.newest_checkpoint)
        if checkpoint:
            self.reached.step = self.reached.checkpoint_step = checkpoint.manifest.step
            best.load(checkpoint.path)
        logger.info(
            "training starts batch_size=%d micro_batch_size=%d from_step=%d", hyper.batch_size, micro, self.reached.step
        )
        started = time.monotonic()
        with saver, passes.applied(model):
            loop.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        state = loop.state
        if state.global_step < state.max_steps:
            self.stop.check(f"Stopped at step {state.global_step} of {state.max_steps}; a checkpoint was committed.")
        seconds = time.monotonic() - started
        logger.info(
            "training ended step=%d seconds=%.1f tokens=%d checkpoints=%d blocked_seconds=%.3f writing_seconds=%.3f",
            state.global_step,
            seconds,
            self.reached.trained_tokens,
            saver.saved,
            saver.blocked_seconds,
            saver.writing_seconds,
        )
        if best.tensors:
            best.restore(model)
        losses = [(e["step"], e["loss"]) for e in state.log_history if "loss" in e]
        return Trained(
            state.global_step,
            losses,
            held_out_curve(state.log_history),
            state.best_global_step,
            memory=memory,
            passes=sizes.now,
            reductions=sizes.reductions,
        )

    def evaluate(
        self, model: Any, dataset: PreparedDataset, passes: "BatchLayout", *, on_gpu: bool
    ) -> dict[str, float]:
        """Mean loss per token of the held-out rows, and what else is asked for; empty without such rows."""
        from finetune_trainer.loop.objectives import choose_objective

        held_out = choose_objective(self.config, dataset, passes).held_out(on_gpu=on_gpu)
        if held_out is None:
            return {}
        with passes.applied(model):
            metrics = held_out.measure(model, self.stop)
        self._check_stop()
        if broken := [name for name, value in (metrics or {}).items() if not math.isfinite(value)]:
            raise TrainingError(
                Reason.LOSS_DIVERGED,
                f"{broken[0]} of the held-out rows is no number after training. Lower hyperparameters.learningRate; a retry "
                "would end alike.",
            )
        return {name: round(value, 6) for name, value in (metrics or {}).items()}

    def score_answers(self, model: Any, base: BaseModel, dataset: PreparedDataset) -> Measured:
        """What the metrics that are asked for say of generated answers to held-out rows; empty if there are none.

        Only a stop ends the run here. Whatever else is raised costs these metrics, and not the adapter, which is trained.
        """
        names = generated_metrics(self.config)
        if not names or dataset.evaluation is None:
            return Measured()
        from finetune_trainer.evaluation.predictions import answer, why_none
        from finetune_trainer.memory.out_of_memory import release_memory

        settings, started = self.config.evaluation_settings, time.monotonic()
        questions = find_questions(dataset.evaluation.rows, settings.generated_rows)
        try:
            answers, wanted = answer(model, base, questions, settings.max_new_tokens, self._check_stop)
        except TrainingError:  # a stop
            raise
        except Exception as error:  # whatever a model's own code raises
            problem = why_none(error)
            logger.warning("metrics are left out names=%s problem=%s", ",".join(names), problem, exc_info=True)
        else:
            measured = measure(names, answers, wanted, self._check_stop)
            values = {name: round(value, 6) for name, value in measured.values.items()}
            figures = " ".join(f"{name}={value:.4f}" for name, value in values.items())
            logger.info("answers scored rows=%d %s seconds=%.1f", len(answers), figures, time.monotonic() - started)
            return Measured(values, measured.problems)
        release_memory()
        return Measured(problems=dict.fromkeys(names, problem))

    def take_fingerprint(self, model: Any, base: BaseModel) -> Fingerprint:
        """Log-probabilities by which an endpoint can be shown to serve this adapter."""
        fingerprint = take_fingerprint(model, base.tokenizer, base.dtype, served_weights(base))
        logger.info("fingerprint taken probes=%d effect=%.4f", len(fingerprint.probes), fingerprint.effect)
        return fingerprint

    def save_adapter(
        self,
        model: Any,
        base: BaseModel,
        examples: Examples,
        report: DatasetReport,
        fingerprint: Fingerprint,
        trained: Trained,
        measured: Measured,
    ) -> Committed:
        """Write adapter, tokenizer, records and manifest into staging, and commit them."""
        staging = self.store.stage_adapter()
        model.save_pretrained(staging)
        base.tokenizer.save_pretrained(staging)
        record = make_record(self.config, base, examples, trained, measured)
        write_records(staging, self.config.output.adapter_name, record, report, fingerprint, trained)
        committed = self.store.commit_adapter(make_manifest(self.config, base, trained.best_step or trained.step))
        logger.info("adapter committed path=%s digest=%s", committed.path, committed.digest[:19])
        return committed

    def report(self, committed: Committed) -> Outcome:
        """The Outcome of a committed adapter, made from its files alone: every attempt reports it alike."""
        trained_tokens = self.reached.trained_tokens if self.reached else None
        return make_outcome(committed, Path(self.config.output.directory), trained_tokens)

    def _check_stop(self) -> None:
        self.stop.check("Stopped between two steps of the run; nothing was lost but its preparation.")


def new_run_id() -> str:
    """Name for a run that belongs to no job: the time, to the second."""
    return dt.datetime.now(dt.UTC).strftime("%Y%m%dt%H%M%Sz")
