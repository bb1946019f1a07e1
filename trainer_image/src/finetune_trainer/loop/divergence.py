"""Divergence check: it ends a run whose loss shows that more steps will not recover it.

Its memory is part of the Trainer's state and thus of every checkpoint, so an interrupted run ends at the same step as an
uninterrupted one.
"""

import math
from statistics import median
from typing import Any, Final

from transformers import TrainerCallback, TrainerState

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError

START_STEPS: Final = 10
"""First steps, whose median is the start loss: one outlier among them does not move it."""
FAR_FACTOR: Final = 1.5
FAR_NATS: Final = 1.0
"""A loss is far above the start loss if it exceeds it by both this factor and this difference, in nats per token."""
PATIENCE_STEPS: Final = 20
"""Consecutive steps far above the start loss that end a run: a spike that training recovers from takes fewer."""
STATE: Final = "DivergenceCallback"
"""Key among the Trainer's `stateful_callbacks`."""


class DivergenceCallback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Ends a run with LossDiverged; it comes before the checkpoint callback, so that no checkpoint of the diverged step is kept.

    Two rules end a run. First: a loss or gradient norm that is not finite. Second: `PATIENCE_STEPS` consecutive losses that
    are each far above the start loss (the median of the first `START_STEPS` steps), by a factor of `FAR_FACTOR` and by
    `FAR_NATS` nats. The factor alone would trigger on the noise of a loss close to zero, the difference alone on the noise
    of a large one. While a run learns, or merely does not, losses scatter around the start loss or below; twenty
    independent batches far above it do not occur by chance, even if one in three is.

    A run that diverges within its first ten steps compares with a bad start loss. Fewer steps would make the start loss
    depend on chance, and end sound runs.
    """

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Check loss and gradient norm of each step. Raises TrainingError (LossDiverged)."""
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise _diverged(f"{name} became {value} at step {state.global_step}")
        if logs and "loss" in logs:
            self._compare(state, logs["loss"])

    def _compare(self, state: TrainerState, loss: float) -> None:
        memory = state.stateful_callbacks.setdefault(STATE, {"start": [], "above": 0})
        if len(memory["start"]) < START_STEPS:
            memory["start"].append(loss)
            return
        start = median(memory["start"])
        limit = max(start * FAR_FACTOR, start + FAR_NATS)
        memory["above"] = memory["above"] + 1 if loss > limit else 0
        if memory["above"] >= PATIENCE_STEPS:
            raise _diverged(
                f"loss was above {limit:.2f} for the last {PATIENCE_STEPS} steps and is {loss:.2f} at step "
                f"{state.global_step}; it started at {start:.2f}"
            )


def _diverged(found: str) -> TrainingError:
    return TrainingError(
        Reason.LOSS_DIVERGED,
        f"{found}. Lower hyperparameters.learningRate (or raise warmupRatio); a retry would end the same way.",
    )
