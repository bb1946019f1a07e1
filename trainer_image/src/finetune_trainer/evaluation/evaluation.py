"""Evaluation on held-out rows: their metrics, early stopping, and the best adapter.

`EvaluationCallback` keeps the state that it decides by in the Trainer's state and in `BestAdapter`. Both are part of every
checkpoint, so an interrupted run stops at the same step, with the same adapter, as an uninterrupted one. The field names are
those of transformers' TrainingArguments and EarlyStoppingCallback. This module imports torch and transformers, so it is
imported only when training is about to start.
"""

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState

from finetune_api.v1alpha1 import EvaluationMetric, EvaluationSettings
from finetune_trainer.batches.batching import choose_micro_batch_size
from finetune_trainer.batches.layout import BatchLayout
from finetune_trainer.data import IGNORED, Tokenized, TokenRow
from finetune_trainer.memory.out_of_memory import halve_on_oom
from finetune_trainer.model.adapter_files import ADAPTER, BEST_ADAPTER_FILE, adapter_tensors
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import StopSignal

logger = logging.getLogger(__name__)

ROWS_PER_PASS: Final = 64
"""Maximum number of held-out rows in one forward pass; their number of tokens usually sets a lower limit."""


class HeldOut(Protocol):
    """Held-out data: rows, or pairs of them."""

    def measure(self, model: PeftModel, stop: StopSignal) -> dict[str, float] | None:
        """Return metrics by name, `eval_loss` among them; None if a stop was requested meanwhile."""


class HeldOutRows:
    """Held-out rows, sorted for their layout."""

    def __init__(
        self, held_out: Tokenized, layout: BatchLayout, *, on_gpu: bool, metrics: Sequence[EvaluationMetric] = ()
    ) -> None:
        """`metrics` are measured beside the loss."""
        keys = layout.order(held_out.rows)
        self._rows = [row for _, row in sorted(zip(keys, held_out.rows, strict=True), key=lambda keyed: keyed[0])]
        self._size = choose_micro_batch_size(
            layout.row_tokens(self._rows, ROWS_PER_PASS), ROWS_PER_PASS, None, on_gpu=on_gpu
        )
        self._layout = layout
        self._loss_tokens = held_out.loss_tokens
        self._metrics = metrics

    def measure(self, model: PeftModel, stop: StopSignal) -> dict[str, float] | None:
        """Return metrics by name, or None if a stop was requested meanwhile; call it within `layout.applied(model)`.

        `eval_loss` is in nats per token with loss, `exact_match` the share of rows for which greedy decoding gives every
        token with loss.
        """
        model.eval()
        loss, exact = 0.0, 0
        with torch.inference_mode():
            for rows in distributed.rank_batches(self._rows, self._size):
                if distributed.agree_to_stop(stop):
                    return None
                if not rows:
                    continue
                for part_loss, part_exact in halve_on_oom(partial(self._measure, model), rows):
                    loss += part_loss
                    exact += part_exact
        loss, all_exact = distributed.all_reduce_sum(loss, exact)
        measured = {"eval_loss": loss / self._loss_tokens, "exact_match": all_exact / len(self._rows)}
        return {name: value for name, value in measured.items() if name == "eval_loss" or name in self._metrics}

    def _measure(self, model: PeftModel, rows: Sequence[TokenRow]) -> tuple[float, int]:
        """Return the summed loss and the number of exact rows of one micro-batch."""
        batch = self._layout.collate(rows)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        # With a count of one the loss is a sum over tokens, so that the mean is taken over the tokens of all micro-batches.
        output = model(**batch, use_cache=False, num_items_in_batch=torch.tensor(1))
        return float(output.loss), exact_rows(output.logits, batch, rows)


def exact_rows(logits: torch.Tensor, batch: dict[str, Any], rows: Sequence[TokenRow]) -> int:
    """Count the rows of a micro-batch that greedy decoding would answer exactly, from its logits [B, P, V].

    Nothing is generated: while every token so far equals the reference, greedy decoding has the context that the row itself
    has, so it gives the whole answer if and only if the most likely token is the reference's at each position.
    """
    targets = batch.get("shift_labels", batch["labels"][:, 1:])
    equal = logits[:, : targets.shape[1]].argmax(dim=-1) == targets
    # Packed or padded, tokens with loss are in the order of the rows.
    parts = equal[targets != IGNORED].split([row.loss_tokens for row in rows])
    return sum(bool(part.all()) for part in parts)


class BestAdapter:
    """A copy of the adapter at the evaluation with the lowest loss; part of every checkpoint after the first evaluation."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        """Tensors by peft's names; empty before the first evaluation. Replaced as a whole, never modified."""

    def keep(self, model: PeftModel) -> None:
        """Copy the current adapter as the best one."""
        self.tensors = adapter_tensors(model)

    def load(self, checkpoint: Path) -> None:
        """Load the best adapter of a checkpoint."""
        file = checkpoint / BEST_ADAPTER_FILE
        self.tensors = load_file(file) if file.exists() else {}

    def restore(self, model: PeftModel) -> None:
        """Write the best adapter back into the model."""
        set_peft_model_state_dict(model, self.tensors, adapter_name=ADAPTER)


class EvaluationCallback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Evaluates every `evalSteps` and after the last step, keeps the best adapter, and stops early.

    It acts on the log of a step, before a checkpoint of that step is taken. The next attempt repeats an evaluation that a
    stop request cut short, before it trains.
    """

    def __init__(self, rows: HeldOut, best: BestAdapter, settings: EvaluationSettings, stop: StopSignal) -> None:
        """`settings.eval_steps` must be set."""
        self._rows = rows
        self._best = best
        self._every = settings.eval_steps or 1
        self._patience = settings.early_stopping_patience
        self._stop = stop

    def on_train_begin(
        self, _args: Any, state: TrainerState, control: TrainerControl, *, model: PeftModel, **_: Any
    ) -> None:
        """Evaluate the checkpoint's step if that is missing, and stop if it was the last step."""
        if (
            state.global_step
            and self._is_due(state)
            and state.global_step not in dict(eval_loss_curve(state.log_history))
        ):
            self._evaluate(model, state)
            control.should_training_stop |= self._stop.requested
        self._stop_early(state, control)

    def on_log(
        self,
        _args: Any,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: PeftModel,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Evaluate a step that is due; the Trainer logs each step, and once more at the very end."""
        if "loss" in logs and self._is_due(state):
            self._evaluate(model, state)
            self._stop_early(state, control)

    def _is_due(self, state: TrainerState) -> bool:
        return bool(state.global_step % self._every == 0 or state.global_step == state.max_steps)

    def _evaluate(self, model: PeftModel, state: TrainerState) -> None:
        metrics = self._rows.measure(model, self._stop)
        if metrics is None:
            return
        loss = metrics["eval_loss"]
        state.log_history.append({"epoch": state.epoch, **metrics, "step": state.global_step})
        if math.isfinite(loss) and (state.best_metric is None or loss < state.best_metric):
            state.best_metric, state.best_global_step = loss, state.global_step
            self._best.keep(model)
        figures = " ".join(f"{name}={value:.4f}" for name, value in metrics.items())
        logger.info("evaluated step=%d %s best_step=%s", state.global_step, figures, state.best_global_step)

    def _stop_early(self, state: TrainerState, control: TrainerControl) -> None:
        evaluations_since_best = (state.global_step - (state.best_global_step or 0)) // self._every
        if self._patience is not None and evaluations_since_best >= self._patience:
            logger.info("stopping early step=%d best_step=%s", state.global_step, state.best_global_step)
            control.should_training_stop = True
            # As after the last planned step, so that no step is repeated if the rest of the run is interrupted.
            control.should_save = True


def eval_loss_curve(history: list[dict[str, float]]) -> list[tuple[int, float]]:
    """Return step and loss of each evaluation in the Trainer's log history."""
    return [(int(entry["step"]), entry["eval_loss"]) for entry in history if "eval_loss" in entry]
