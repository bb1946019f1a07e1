"""Records of a run: the files beside the adapter's weights that show what made it, and its Outcome.

All of them are functions of values: the same run gives the same files, and every attempt the same Outcome.
"""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from finetune_api.artifacts import (
    ADAPTER_CONFIG_FILE,
    DATASET_REPORT_FILE,
    FINGERPRINT_FILE,
    MODEL_CARD_FILE,
    RUN_RECORD_FILE,
    RUN_REPORT_FILE,
    AdapterChat,
    Manifest,
)
from finetune_api.contract import MAX_TERMINATION_BYTES
from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import CommittedAdapter, MicroBatching, Outcome, Result
from finetune_api.reasons import Reason
from finetune_api.training import TrainingConfig
from finetune_trainer.data.report import DatasetReport, SourceReport
from finetune_trainer.dataset import Examples
from finetune_trainer.evaluation.answer_metrics import MetricResults
from finetune_trainer.memory.plan import MemoryPlan
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.model.quantization import PACKAGE
from finetune_trainer.reporting.run_report import AVERAGED_STEPS, render_model_card, render_page
from finetune_trainer.runtime import distributed
from finetune_trainer.store.run_store import Committed

OUTCOME_BYTES: Final = MAX_TERMINATION_BYTES - 512
"""Maximum bytes of an Outcome with its fingerprint; the rest is reserved for longer names and numbers."""
NOTE_BYTES: Final = 500
"""Maximum bytes of an Outcome's note on failed metrics, because it also carries probes; the record has all of them."""
RECORDED_PACKAGES: Final = ("finetune-trainer", "torch", "transformers", "peft", "tokenizers", "accelerate")


@dataclass(frozen=True)
class TrainingResult:
    """Result of a finished training."""

    step: int
    losses: list[tuple[int, float]]
    """Step and loss, of all steps or of a few hundred evenly spread ones."""
    eval_losses: list[tuple[int, float]]
    """Step and loss of each evaluation during training."""
    best_step: int | None
    """Step with the lowest of these losses, whose adapter is committed; None without evaluations, for the last step."""
    memory: MemoryPlan
    """Memory plan, as made before training."""
    micro_batching: MicroBatching
    """Micro-batching of the last step."""
    reductions: list[dict[str, Any]]
    """Step and new micro-batching after each time that memory was exhausted, as in run.json."""

    @property
    def metrics(self) -> dict[str, float]:
        """Mean loss of the last `AVERAGED_STEPS` steps; empty if no step was trained."""
        last = [loss for _, loss in self.losses[-AVERAGED_STEPS:]]
        return {"train_loss": round(sum(last) / len(last), 6)} if last else {}


def make_manifest(config: TrainingConfig, base: BaseModel, step: int, chat: AdapterChat | None = None) -> Manifest:
    """Describe the origin of an adapter; the commit adds its files."""
    job = config.job
    return Manifest(
        kind="adapter",
        step=step,
        job_uid=job.uid if job else None,
        attempt=job.attempt if job else None,
        base_model=config.model.source or config.model.path,
        base_revision=base.revision,
        base_digest=base.digest,
        initial_adapter=config.initial_adapter.digest if config.initial_adapter else None,
        chat=chat,
        files=[],
    )


def make_record(
    config: TrainingConfig, base: BaseModel, examples: Examples, trained: TrainingResult, results: MetricResults
) -> dict[str, Any]:
    """Record what made the adapter, without time and attempt, so that the same run gives the same record."""
    import torch

    packages = RECORDED_PACKAGES if config.lora.quantization == "none" else (*RECORDED_PACKAGES, PACKAGE)
    document = config.to_dict()
    document.pop("job", None)
    for rows in (document["dataset"], *document["dataset"].get("sources", []), document.get("evaluation", {})):
        if "inline" in rows:
            rows["inline"] = "(left out; see dataset.digest)"
    return {
        "formatVersion": 1,
        "config": document,
        "dataset": {
            "digest": examples.digest,
            "format": examples.row_format,
            "rows": len(examples.training),
            "evaluationRows": len(examples.evaluation),
            "leftOutRows": examples.left_out,
            **(
                {"sources": [SourceReport(**asdict(use)).to_dict() for use in examples.sources]}
                if examples.sources
                else {}
            ),
        },
        "base": {"model": config.model.source or config.model.path, "revision": base.revision},
        "seed": config.hyperparameters.seed,
        "steps": trained.step,
        "bestStep": trained.best_step,
        "passes": trained.micro_batching.to_dict(),
        "outOfMemory": trained.reductions,
        "memory": {
            "expectedBytes": trained.memory.estimate.total,
            "limitBytes": trained.memory.limit,
            "gradientCheckpointing": trained.memory.explanation,
        },
        "metrics": results.values,
        "unmeasured": results.problems,
        "environment": {
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
            "device": torch.cuda.get_device_name() if base.on_gpu else platform.machine(),
            "dtype": base.dtype,
            "threads": torch.get_num_threads(),
            **({"processes": distributed.world_size()} if distributed.world_size() > 1 else {}),
        },
    }


def write_records(
    folder: Path,
    name: str,
    record: dict[str, Any],
    report: DatasetReport,
    fingerprint: Fingerprint,
    trained: TrainingResult,
) -> None:
    """Add all files but weights and tokenizer to the folder of the adapter `name`, which peft has saved."""
    _sort_targets(folder / ADAPTER_CONFIG_FILE)
    _write_json(folder / DATASET_REPORT_FILE, report.to_dict())
    _write_json(folder / FINGERPRINT_FILE, fingerprint.to_dict())
    _write_json(folder / RUN_RECORD_FILE, record)
    page = render_page(name, record, trained.losses, report, trained.eval_losses)
    (folder / RUN_REPORT_FILE).write_text(page, encoding="utf-8")
    # Replaces peft's, which is an unfilled template.
    (folder / MODEL_CARD_FILE).write_text(render_model_card(name, record, report), encoding="utf-8")


def make_outcome(committed: Committed, output: Path, trained_tokens: int | None) -> Outcome:
    """Build the Outcome of a committed adapter from its files below `output`; `trained_tokens` are those of this attempt."""
    record = json.loads((committed.path / RUN_RECORD_FILE).read_text())
    outcome = Outcome(
        result=Result.SUCCEEDED,
        reason=Reason.TRAINED,
        message=_summary(record),
        step=record["steps"],
        trained_tokens=trained_tokens,
        metrics=record["metrics"],
        # Absent from the records of older releases, whose adapter a later attempt may report.
        passes=record.get("passes"),
        adapter=CommittedAdapter(
            path=committed.path.relative_to(output).as_posix(),
            digest=committed.digest,
            size_bytes=committed.manifest.size_bytes,
            base_revision=committed.manifest.base_revision,
            fingerprint=Fingerprint.model_validate_json((committed.path / FINGERPRINT_FILE).read_text()),
        ),
    )
    return fit_termination_message(outcome)


def fit_termination_message(outcome: Outcome) -> Outcome:
    """Remove probes until the Outcome fits a termination message; the adapter's fingerprint file has all of them."""
    adapter = outcome.adapter
    while adapter and adapter.fingerprint and len(outcome.to_termination_message().encode()) > OUTCOME_BYTES:
        probes = adapter.fingerprint.probes[:-1]
        fewer = adapter.fingerprint.model_copy(update={"probes": probes}) if probes else None
        adapter = adapter.model_copy(update={"fingerprint": fewer})
        outcome = outcome.model_copy(update={"adapter": adapter})
    return outcome


def _summary(record: dict[str, Any]) -> str:
    text = f"Trained {record['steps']} steps on {record['dataset']['rows']} rows."
    best = record.get("bestStep")
    if best is not None:
        text += f" Step {best} was the best on held-out rows."
    # Absent from the records of older releases.
    if problems := record.get("unmeasured"):
        note = f" Not measured: {_by_problem(problems)}."
        text += note.encode()[:NOTE_BYTES].decode(errors="ignore")
    return text


def _by_problem(problems: dict[str, str]) -> str:
    names: dict[str, list[str]] = {}
    for name, problem in problems.items():
        names.setdefault(problem, []).append(name)
    return "; ".join(f"{', '.join(named)} ({problem})" for problem, named in names.items())


def _sort_targets(path: Path) -> None:
    """Sort the target modules, because peft keeps them in a set and writes them in another order each time."""
    document = json.loads(path.read_text())
    if isinstance(document["target_modules"], list):
        document["target_modules"].sort()
    _write_json(path, document)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
