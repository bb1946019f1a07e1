"""The trainer's figures as they appear in status. Pure."""

from datetime import UTC, datetime

from finetune_api.outcome import MicroBatching, Outcome, Progress
from finetune_api.v1alpha1 import ProgressStatus


def progress_status(progress: Progress) -> ProgressStatus:
    """Status form of what the running trainer reported."""
    eta = None if progress.eta_seconds is None else max(0, round(progress.eta_seconds))
    return ProgressStatus(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=None if progress.epoch is None else round(progress.epoch, 2),
        percent=_percent(progress.step, progress.total_steps),
        loss=None if progress.loss is None else f"{progress.loss:.4f}",
        eval_loss=None if progress.eval_loss is None else f"{progress.eval_loss:.4f}",
        eta_seconds=eta,
        eta=None if eta is None else humanize(eta),
        tokens_per_second=None if progress.tokens_per_second is None else max(0, round(progress.tokens_per_second)),
        passes=progress.passes,
        last_update_time=datetime.fromtimestamp(int(progress.timestamp), UTC),
    )


def is_due(old: ProgressStatus | None, progress: Progress, interval_seconds: float) -> bool:
    """Whether newer figures are worth a write: at most one per interval, and only if the training moved."""
    if old is None or old.last_update_time is None:
        return True
    if progress.step == old.step and progress.total_steps == old.total_steps:
        return False
    # A new attempt starts before the step that the last one reached; its figures are always newer.
    return progress.timestamp - old.last_update_time.timestamp() >= interval_seconds


def finished_progress(old: ProgressStatus | None, outcome: Outcome) -> ProgressStatus:
    """Progress of a training that is done."""
    base = old or ProgressStatus()
    return base.model_copy(
        update={
            "step": outcome.step,
            "total_steps": outcome.step,
            "percent": 100,
            "eta_seconds": None,
            "eta": None,
            "tokens_per_second": None,
            "passes": outcome.passes or base.passes,
        }
    )


def new_reductions(old: ProgressStatus | None, passes: MicroBatching | None) -> str | None:
    """What to tell people if memory ran out since `old`; None if it did not."""
    known = old.passes.reductions if old and old.passes else 0
    if passes is None or passes.reductions <= known:
        return None
    size = "1 row" if passes.micro_batch_size == 1 else f"{passes.micro_batch_size} rows"
    how = " with gradient checkpointing" if passes.gradient_checkpointing else ""
    return (
        f"Memory ran out; training goes on in passes of {size}{how}. The result stays the same, steps take "
        "longer. Set hyperparameters.microBatchSize, or raise resources.memory or use a larger GPU, to spare the next job this."
    )


def humanize(seconds: int) -> str:
    """Seconds as people write them: 45s, 2m10s, 3h05m."""
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def _percent(step: int, total: int) -> int:
    return min(100, 100 * step // total) if total else 0
