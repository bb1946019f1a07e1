"""The trainer's figures in status: progress, checkpoints, and the reductions of its micro-batches. Pure."""

from datetime import UTC, datetime

from finetune_api.conditions import ConditionType
from finetune_api.outcome import MicroBatching, Outcome, Progress
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import CheckpointStatus, FinetuneJob, ProgressStatus
from finetune_operator.reconcile.events import EventDraft
from finetune_operator.reconcile.job.changes import ConditionChange, When


def progress_status(progress: Progress) -> ProgressStatus:
    """Return the running trainer's figures in their form for status."""
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
    """Tell whether newer figures are worth a write: at most one per interval, and only if the training moved."""
    if old is None or old.last_update_time is None:
        return True
    if progress.step == old.step and progress.total_steps == old.total_steps:
        return False
    # A new attempt starts before the step that the last one reached; its figures are always newer.
    return progress.timestamp - old.last_update_time.timestamp() >= interval_seconds


def finished_progress(old: ProgressStatus | None, outcome: Outcome) -> ProgressStatus:
    """Return the progress of a training that is done."""
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


def reduction_events(old: ProgressStatus | None, passes: MicroBatching | None) -> tuple[EventDraft, ...]:
    """Announce that memory was exceeded and training continues with smaller micro-batches, if status does not say so yet."""
    known = old.passes.reductions if old and old.passes else 0
    if passes is None or passes.reductions <= known:
        return ()
    size = "1 row" if passes.micro_batch_size == 1 else f"{passes.micro_batch_size} rows"
    how = " with gradient checkpointing" if passes.gradient_checkpointing else ""
    message = (
        f"Out of memory; training continues in micro-batches of {size}{how}. The result stays the same, steps take longer. "
        "To avoid this in the next job, set hyperparameters.microBatchSize, or raise resources.memory or use a larger GPU."
    )
    return (EventDraft("OutOfMemory", message, is_warning=True),)


def checkpoint_available(when: When = When.ABSENT) -> ConditionChange:
    """Set CheckpointAvailable to True."""
    message = "A checkpoint is saved; the next attempt continues from there."
    return ConditionChange(ConditionType.CHECKPOINT_AVAILABLE, "True", Reason.TRAINING, message, when)


def checkpoint_statuses(job: FinetuneJob, step: int | None) -> list[CheckpointStatus]:
    """Return the known checkpoints and a newer one; the trainer keeps `spec.checkpoint.keep` of them on the volume."""
    known = [c for c in job.status.checkpoints if step is None or c.step != step]
    if step is not None:
        known.append(CheckpointStatus(step=step, path=f".jobs/{job.metadata.uid}/checkpoints/step-{step}"))
    return sorted(known, key=lambda c: c.step)[-job.spec.checkpoint.keep :]


def humanize(seconds: int) -> str:
    """Format seconds as people write them: 45s, 2m10s, 3h05m."""
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def _percent(step: int, total: int) -> int:
    return min(100, 100 * step // total) if total else 0
