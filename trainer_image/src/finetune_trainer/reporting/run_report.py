"""Pages for people: `report.html` with the loss curve, and the model card of the adapter.

Both are made from the run's records and contain no time: the same run gives the same bytes, so adapters can be compared by
digest. The page is one file without scripts and without external resources.
"""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from finetune_trainer.data.report import DatasetReport

AVERAGED_STEPS: Final = 10
"""Last steps whose mean loss is the metric train_loss, because the loss of one step depends too much on its few rows."""
WIDTH, HEIGHT, MARGIN = 720, 260, 46
"""Size of a plot, and margin for its labels, in pixels."""
SMOOTHING: Final = 0.9
"""Weight of the past in the smoothed loss curve."""

Points = Sequence[tuple[float, float]]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #1f6feb; --dots: #1f6feb55; --held-out: #bf4b00; --grid: #8885; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1.2rem .15rem 0; vertical-align: top; }
th { font-weight: 500; opacity: .75; } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: currentColor; }
""".strip()


def render_page(
    name: str, record: dict[str, Any], losses: Points, dataset: DatasetReport, eval_losses: Points = ()
) -> str:
    """Render `report.html`: facts, loss curve, lengths of rows. `losses` and `eval_losses` are (step, loss), steps from 1."""
    metrics = record["metrics"]
    sections = [
        f"<h1>{escape(name)}</h1>",
        _table(_facts(record, dataset)),
        "<h2>Loss</h2>",
        _loss_plot(losses, metrics.get("eval_loss"), eval_losses),
        "<h2>Lengths of training rows, in tokens</h2>",
        _histogram([(bin_.up_to, bin_.rows) for bin_ in dataset.training.lengths.histogram]),
    ]
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}: training report</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def render_model_card(name: str, record: dict[str, Any], dataset: DatasetReport) -> str:
    """Render README.md of the adapter, with the front matter that hubs and libraries read."""
    rows = "\n".join(f"| {label} | {value} |" for label, value in _facts(record, dataset))
    return (
        f"---\nbase_model: {record['base']['model']}\nlibrary_name: peft\npipeline_tag: text-generation\n"
        f"tags:\n- lora\n- finetune-operator\n---\n\n# {name}\n\n"
        f"A LoRA adapter for `{record['base']['model']}`.\n\n| | |\n|---|---|\n{rows}\n\n"
        "`run.json` records the run's configuration, inputs and versions, `dataset-report.json` describes the rows, "
        "`report.html` shows the loss, and `fingerprint.json` holds the probes that verify that an endpoint serves these "
        "weights.\n"
    )


def _facts(record: dict[str, Any], dataset: DatasetReport) -> list[tuple[str, str]]:
    hyper, lora, metrics = record["config"]["hyperparameters"], record["config"]["lora"], record["metrics"]
    facts = [
        ("base model", f"{record['base']['model']} ({record['base']['revision'][:24]})"),
        (
            "dataset",
            f"{dataset.training.rows} {dataset.noun}s, {dataset.training.tokens} tokens, {dataset.digest[:19]}",
        ),
        ("adapter", _adapter(lora)),
        ("steps", f"{record['steps']} of {hyper['batchSize']} rows, learning rate {hyper['learningRate']:g}"),
        *([("continues from", _initial(initial))] if (initial := record["config"].get("initialAdapter")) else []),
        *([("method", f"DPO, beta {dpo['beta']:g}")] if (dpo := record["config"].get("dpo")) else []),
        *([("best step", str(record["bestStep"]))] if record["bestStep"] else []),
        ("micro-batch", _micro_batch(record["passes"])),
        *(
            ("out of memory", f"step {r['step']}, repeated with micro-batches of {_micro_batch(r['passes'])}")
            for r in record["outOfMemory"]
        ),
        *([("not measured", f"{', '.join(record['unmeasured'])} (see run.json)")] if record["unmeasured"] else []),
        ("seed", str(record["seed"])),
    ]
    names = {
        "train_loss": f"training loss (mean of the last {AVERAGED_STEPS} steps)",
        "eval_loss": "loss on held-out rows",
        "exact_match": "share of held-out rows answered exactly",
        "answer_match": "share of generated answers that match the reference",
        "token_f1": "F1 of the words of generated answers",
        "rouge_l": "ROUGE-L of generated answers",
        "reward_accuracy": "share of held-out pairs whose chosen answer is preferred",
        "reward_margin": "mean reward margin of held-out pairs",
    }
    return facts + [(names.get(key, key), f"{value:.4f}") for key, value in sorted(metrics.items())]


def _adapter(lora: dict[str, Any]) -> str:
    variations = [name for key, name in (("useRslora", "rsLoRA"), ("useDora", "DoRA")) if lora[key]]
    quantized = [] if lora["quantization"] == "none" else [f"trained on {lora['quantization']} weights"]
    return ", ".join([f"rank {lora['rank']}, alpha {lora['alpha']}", *variations, *quantized])


def _initial(initial: dict[str, str]) -> str:
    return f"{initial.get('source') or initial['path']} ({initial['digest'][:19]})"


def _micro_batch(micro_batching: dict[str, Any]) -> str:
    rows = micro_batching["microBatchSize"]
    text = "1 row" if rows == 1 else f"{rows} rows"
    return f"{text}, gradient checkpointing" if micro_batching["gradientCheckpointing"] else text


def _table(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>" for label, value in facts)
    return f"<table>{rows}</table>"


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, with bias correction (as in Adam, arXiv 1412.6980, section 3)."""
    mean, smoothed = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed


def _loss_plot(losses: Points, held_out: float | None, evaluations: Points) -> str:
    if not losses:
        return "<p>No step was trained.</p>"
    steps = [step for step, _ in losses]
    values = [loss for _, loss in losses]
    top = max([*values, held_out or 0.0, *(loss for _, loss in evaluations)]) * 1.05 or 1.0
    first, last = min(steps), max(steps)

    def x(step: float) -> float:
        return MARGIN + (step - first) / max(last - first, 1) * (WIDTH - 2 * MARGIN)

    def y(loss: float) -> float:
        return HEIGHT - MARGIN - loss / top * (HEIGHT - 2 * MARGIN)

    dots = "".join(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2"/>' for s, v in losses)
    line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, smooth(values), strict=True))
    parts = [
        _grid([(y(top * i / 4), f"{top * i / 4:.3g}") for i in range(5)]),
        f'<g fill="var(--dots)">{dots}</g>',
        f'<polyline points="{line}" fill="none" stroke="var(--line)" stroke-width="2"/>',
        *(_text(x(step), HEIGHT - MARGIN + 18, f"{step:g}", "middle") for step in sorted({first, last})),
        _text(WIDTH / 2, HEIGHT - 8, "optimizer step (dots: loss of each step, line: smoothed)", "middle"),
    ]
    if len(evaluations) > 1:
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in evaluations)
        parts.append(f'<polyline points="{points}" fill="none" stroke="var(--held-out)" stroke-width="2"/>')
    if held_out is not None:
        parts.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(held_out):.1f}" y2="{y(held_out):.1f}" '
            'stroke="var(--held-out)" stroke-dasharray="6 4"/>'
        )
        parts.append(_text(WIDTH - MARGIN, y(held_out) - 5, f"held-out {held_out:.3f}", "end"))
    return _svg("Training loss by step", parts)


def _histogram(bins: Sequence[tuple[int, int]]) -> str:
    most = max(rows for _, rows in bins)
    width = (WIDTH - 2 * MARGIN) / len(bins)
    parts = []
    for i, (up_to, rows) in enumerate(bins):
        height = rows / most * (HEIGHT - 2 * MARGIN)
        left, top = MARGIN + i * width, HEIGHT - MARGIN - height
        parts += [
            f'<rect x="{left + 2:.1f}" y="{top:.1f}" width="{width - 4:.1f}" height="{height:.1f}" fill="var(--line)"/>',
            _text(left + width / 2, top - 5, str(rows), "middle"),
            _text(left + width / 2, HEIGHT - MARGIN + 18, f"≤ {up_to}", "middle"),
        ]
    return _svg("Rows by length", parts)


def _grid(lines: Sequence[tuple[float, str]]) -> str:
    return "".join(
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>'
        + _text(MARGIN - 6, y + 4, label, "end")
        for y, label in lines
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'
