"""Command line of the trainer.

train     run a configuration by hand, without Kubernetes
validate  check everything that can be known without training: dataset, model, memory, disk
inspect   verify an adapter's files and say what made it
work      what the pod runs: the mounted configuration, through Celery
"""

import argparse
import json
import sys
from pathlib import Path

from finetune_api.artifacts import FINGERPRINT_FILE, RUN_RECORD_FILE, ArtifactError, read_verified
from finetune_api.constants import ExitCode
from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import Result
from finetune_trainer.config import TrainerSettings, load_config
from finetune_trainer.environment import prepare_environment
from finetune_trainer.errors import TrainingError, exit_code_of
from finetune_trainer.interruption import STOP
from finetune_trainer.log import configure_logging


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    settings = TrainerSettings()
    configure_logging(settings.log_level)
    prepare_environment()
    try:
        return int(parsed.run(parsed, settings))
    except TrainingError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m finetune_trainer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="run a configuration by hand, without Kubernetes")
    train.add_argument("config", type=Path, help="TrainingConfig as YAML or JSON")
    train.add_argument("--run-id", help="name of the adapter's folder; name an interrupted run here to go on with it")
    train.set_defaults(run=_train)

    validate = commands.add_parser(
        "validate", help="check everything that can be known without training: dataset, model, memory, disk"
    )
    validate.add_argument("config", type=Path, help="TrainingConfig as YAML or JSON")
    validate.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="memory of the GPU that will train; else this machine is checked",
    )
    validate.set_defaults(run=_validate)

    inspect = commands.add_parser("inspect", help="verify an adapter's files and say what made it")
    inspect.add_argument("adapter", type=Path, help="folder of a committed adapter")
    inspect.set_defaults(run=_inspect)

    work = commands.add_parser("work", help="what the pod runs: the mounted configuration, through Celery")
    work.set_defaults(run=_work)
    return parser


def _train(parsed: argparse.Namespace, settings: TrainerSettings) -> int:
    from finetune_trainer.kubeflow import kubeflow_reporters
    from finetune_trainer.progress import ConsoleReporter, LogReporter, Reporters
    from finetune_trainer.tasks.finetuning_task import run_finetuning
    from finetune_trainer.training import new_run_id

    config = load_config(parsed.config, model_name_or_path=settings.model_name_or_path)
    run_id = config.job.uid if config.job else parsed.run_id or new_run_id()
    STOP.install()
    reporter = Reporters([ConsoleReporter() if sys.stderr.isatty() else LogReporter(), *kubeflow_reporters()])
    outcome = run_finetuning(config, reporter, STOP, run_id)
    reporter.close(outcome)
    if outcome.result is Result.SUCCEEDED and outcome.adapter:
        metrics = " ".join(f"{name}={value}" for name, value in sorted(outcome.metrics.items()))
        print(f"{outcome.message} {metrics}")
        print(f"adapter: {Path(config.output.directory) / outcome.adapter.path}")
    else:
        print(f"{outcome.reason}: {outcome.message}", file=sys.stderr)
        if outcome.checkpoint_step and not config.job:
            print(f"Go on with: python -m finetune_trainer train {parsed.config} --run-id {run_id}", file=sys.stderr)
    return exit_code_of(outcome)


def _validate(parsed: argparse.Namespace, settings: TrainerSettings) -> int:
    from finetune_trainer.data.report import remarks, render_report
    from finetune_trainer.preflight import run_preflight
    from finetune_trainer.preflight.estimate import GIB, gib
    from finetune_trainer.training import quiet_libraries

    config = load_config(parsed.config, model_name_or_path=settings.model_name_or_path)
    quiet_libraries()
    found = run_preflight(config, gpu_memory=int(parsed.gpu_memory * GIB) if parsed.gpu_memory else None)
    print(f"config:     {parsed.config} is valid")
    if found.shape:
        shown = config.model.source or config.model.path
        print(f"model:      {shown}, revision {found.shape.revision}, adapter of {found.shape.trainable} parameters")
    if found.dataset:
        print(render_report(found.dataset.report))
    if found.memory and found.disk is not None:
        print(f"memory:     about {found.memory}\ndisk:       about {gib(found.disk)} in {config.output.directory}")
    for warning in [*found.warnings, *(remarks(found.dataset.report) if found.dataset else [])]:
        print(f"warning:    {warning}")
    for failure in found.failures:
        print(f"{failure.reason}: {failure.message}", file=sys.stderr)
    return found.failures[0].exit_code if found.failures else ExitCode.SUCCEEDED


def _inspect(parsed: argparse.Namespace, _settings: TrainerSettings) -> int:
    try:
        manifest, digest = read_verified(parsed.adapter)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return ExitCode.BUG
    print(f"whole:    {len(manifest.files)} files, {manifest.size_bytes} bytes, digest {digest}")
    print(f"base:     {manifest.base_model}, revision {manifest.base_revision}")
    print(f"job:      {manifest.job_uid}, attempt {manifest.attempt}, step {manifest.step}")
    fingerprint = parsed.adapter / FINGERPRINT_FILE
    if fingerprint.exists():
        effect = Fingerprint.model_validate_json(fingerprint.read_text()).effect
        print(f"effect:   {effect:.4f} nats per token between tuned and base")
    record = parsed.adapter / RUN_RECORD_FILE
    if record.exists():
        print("record:   " + json.dumps(json.loads(record.read_text()), indent=2, ensure_ascii=False))
    return ExitCode.SUCCEEDED


def _work(_parsed: argparse.Namespace, settings: TrainerSettings) -> int:
    from finetune_trainer.worker import work

    return work(settings)


if __name__ == "__main__":
    sys.exit(main())
