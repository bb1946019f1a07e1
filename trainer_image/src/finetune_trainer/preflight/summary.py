"""Findings of a preflight in words: lines for a log or a terminal, and one message for a status."""

from finetune_api.training import TrainingConfig
from finetune_trainer.data.report import PartReport, remarks, render_report
from finetune_trainer.memory.estimate import gib
from finetune_trainer.preflight.checks import Preflight


def describe(config: TrainingConfig, found: Preflight) -> str:
    """Format model, dataset with its histogram, memory, disk and warnings as lines."""
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
    """Summarize a run that may start in one message: rows, tokens, expected resources and warnings."""
    if not (found.dataset and found.memory and found.disk is not None):
        raise ValueError("a preflight that failed has no summary")
    report = found.dataset.report
    parts = [f"training: {_counted(report.training, report.noun)}"]
    if report.evaluation:
        parts.append(f"held out: {_counted(report.evaluation, report.noun)}")
    if report.left_out:
        parts.append(f"left out by maxRows or weight: {report.left_out} {report.noun}s")
    figures = f"{'; '.join(parts)}; memory about {gib(found.memory.estimate.total)}, disk about {gib(found.disk)}."
    warnings = "".join(f" Warning: {warning}." for warning in warnings_of(found))
    return figures[:1].upper() + figures[1:] + warnings


def warnings_of(found: Preflight) -> list[str]:
    """List probable mistakes in settings and rows."""
    return [*found.warnings, *(remarks(found.dataset.report) if found.dataset else [])]


def _counted(part: PartReport, noun: str) -> str:
    return f"{part.rows} {noun}s, {part.tokens} tokens, {part.loss_tokens} of them with loss"
