"""What a preflight found, in words: for the log of a container or a terminal, and in one message for a status."""

from finetune_api.training import TrainingConfig
from finetune_trainer.data.report import PartReport, remarks, render_report
from finetune_trainer.memory.estimate import gib
from finetune_trainer.preflight.checks import Preflight


def describe(config: TrainingConfig, found: Preflight) -> str:
    """Model, dataset with its histogram, memory, disk and warnings, on lines of their own."""
    lines = []
    if found.shape:
        shown = config.model.source or config.model.path
        lines.append(
            f"model:      {shown}, revision {found.shape.revision}, adapter of {found.shape.trainable} parameters"
        )
    if found.dataset:
        lines.append(render_report(found.dataset.report))
    if found.memory and found.disk is not None:
        lines += [
            f"memory:     about {found.memory.estimate}",
            f"            gradient checkpointing is {'on' if found.memory.gradient_checkpointing else 'off'}: "
            f"{found.memory.explanation}",
            f"disk:       about {gib(found.disk)} in {config.output.directory}",
        ]
    return "\n".join([*lines, *(f"warning:    {warning}" for warning in warnings_of(found))])


def summarize(found: Preflight) -> str:
    """One message on a run that may start: rows, tokens, what it will take, and what is probably not meant."""
    if not (found.dataset and found.memory and found.disk is not None):
        raise ValueError("a preflight that failed has no summary")
    report = found.dataset.report
    parts = [f"training: {_counted(report.training)}"]
    if report.evaluation:
        parts.append(f"held out: {_counted(report.evaluation)}")
    figures = f"{'; '.join(parts)}; memory about {gib(found.memory.estimate.total)}, disk about {gib(found.disk)}."
    warnings = "".join(f" Warning: {warning}." for warning in warnings_of(found))
    return figures[:1].upper() + figures[1:] + warnings


def warnings_of(found: Preflight) -> list[str]:
    """What is allowed and probably not meant, of settings and rows."""
    return [*found.warnings, *(remarks(found.dataset.report) if found.dataset else [])]


def _counted(part: PartReport) -> str:
    return f"{part.rows} rows, {part.tokens} tokens, {part.loss_tokens} of them with loss"
