"""The watchdog of a training that goes wrong: it ends a run whose loss tells that no more steps will mend it.

What it remembers is part of the Trainer's state and thus of every checkpoint, so an interrupted run ends where an
uninterrupted one does.
"""

import math
from statistics import median
from typing import Any, Final

from transformers import TrainerCallback

from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError

START_STEPS: Final = 10
"""First steps, whose median loss is the start: one odd step among them does not move it."""
FAR_FACTOR: Final = 1.5
FAR_NATS: Final = 1.0
"""A loss is far above its start if it is so many times as large and by at least so much larger."""
PATIENCE_STEPS: Final = 20
"""Steps in a row that have to be far above: a spike after which training recovers takes fewer."""
STATE: Final = "DivergenceCallback"
"""Key among the Trainer's `stateful_callbacks`."""


class DivergenceCallback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Ends a run with LossDiverged; first in line, so that no checkpoint of the step that shows it is kept.

    There are two rules. A loss or gradient norm that is no finite number ends the run at once. And so do `PATIENCE_STEPS`
    losses in a row each of which is far above the start, the median loss of the first `START_STEPS` steps: larger by a factor
    of `FAR_FACTOR` and by `FAR_NATS` nats. The factor alone would fire on the noise of a loss close to zero, the difference
    alone on that of a large one. On a run that learns, or that merely does not, losses scatter around the start or below;
    that each of twenty independent batches is far above it does not happen by chance, even if one in three is.

    A run that breaks within its first ten steps has a bad start to compare with; fewer steps would make the start a matter of
    luck, and end sound runs.
    """

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Look at the figures of each step. Raises TrainingError (LossDiverged)."""
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise _diverged(f"{name} became {value} at step {state.global_step}")
        if logs and "loss" in logs:
            self._compare(state, logs["loss"])

    def _compare(self, state: Any, loss: float) -> None:
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
                f"{state.global_step}, while it started at {start:.2f}"
            )


def _diverged(found: str) -> TrainingError:
    return TrainingError(
        Reason.LOSS_DIVERGED,
        f"{found}. Lower hyperparameters.learningRate (or raise warmupRatio); a retry would end alike.",
    )
