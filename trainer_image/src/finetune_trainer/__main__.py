"""Fine-tunes a causal language model with LoRA, with or without Kubernetes: rows and a base model in, an adapter out."""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

from finetune_api.artifacts import FINGERPRINT_FILE, RUN_RECORD_FILE, ArtifactError, read_verified
from finetune_api.contract import ExitCode
from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import Result
from finetune_trainer.config import TrainerSettings, load_config
from finetune_trainer.errors import TrainingError, exit_code_of
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.environment import prepare_environment
from finetune_trainer.runtime.interruption import STOP
from finetune_trainer.runtime.log import configure_logging

HELP_WIDTH: Final = 100
"""Characters of a line of `--help`."""

EXAMPLE: Final = """\
the smallest config.yaml:
  model: {path: /models/SmolLM2-135M-Instruct}          # a checkpoint folder, or ORG/NAME of a model hub
  dataset: {path: train.jsonl}                          # also .json, .csv, .parquet; https://, s3://, hf://
  output: {directory: adapters, adapterName: my-adapter}

rows of train.jsonl, one of:
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
  {"prompt": "Hi", "completion": "Hello!"}
  {"text": "Any text, all of which is learnt."}
  {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}      (with dpo: {})

more of it, all optional (shown: the defaults, but for evaluation):
  evaluation: {path: held-out.jsonl}                    # or dataset.evaluationFraction: 0.1
  hyperparameters: {epochs: 3, batchSize: 8, learningRate: 2.0e-4, maxLength: 1024}
  lora: {rank: 8, alpha: 16}

Fields are those of a FinetuneJob (crds/docs/finetunejob.md). MODEL_NAME_OR_PATH in the environment replaces model.path."""

STATUSES: Final = f"""\
exit status: {ExitCode.SUCCEEDED} done, {ExitCode.CONFIG_INVALID} config is wrong, {ExitCode.DATASET_INVALID} dataset is wrong, \
{ExitCode.MODEL_INVALID} model is wrong, {ExitCode.STORAGE_FULL} disk is full,
{ExitCode.INTERRUPTED} interrupted and can go on, {ExitCode.BUG} anything else"""


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
        prog="python -m finetune_trainer",
        description=__doc__,
        epilog="begin with: validate CONFIG, then train CONFIG; COMMAND --help says more, with an example",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = _add_command(
        commands,
        "train",
        "run a configuration by hand, without Kubernetes",
        "Train an adapter and commit it to output.directory/adapterName/RUN_ID, with a record and a report of what made it. "
        "Progress goes to stderr, the adapter's folder to stdout. A run that is interrupted (also by Ctrl-C) saves what it has, "
        "and says how to go on; the adapter comes out the same.",
        f"{EXAMPLE}\n\n{STATUSES}",
    )
    train.add_argument("config", type=Path, help="configuration, as YAML or JSON")
    train.add_argument(
        "--run-id", help="name of the adapter's folder (default: the time); that of an interrupted run goes on with it"
    )
    train.set_defaults(run=_train)

    validate = _add_command(
        commands,
        "validate",
        "check everything that can be known without training: dataset, model, memory, disk",
        "Check a configuration without training and without a GPU, and list every mistake at once: fields, each row of the "
        "dataset, the model, and whether memory and disk suffice. Shows what the dataset is like, and writes nothing.",
        f"{EXAMPLE}\n\n{STATUSES}",
    )
    validate.add_argument(
        "config", type=Path, nargs="?", help="configuration, as YAML or JSON; in a pod none: the mounted one is meant"
    )
    validate.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="memory of the GPU that will train; else this machine is checked",
    )
    validate.set_defaults(run=_validate)

    inspect = _add_command(
        commands,
        "inspect",
        "verify an adapter's files and say what made it",
        "Verify the files of an adapter against the digests of its manifest, and show its base model, how much it changes "
        "answers, and the record of its run: configuration, versions, metrics.",
        f"exit status: {ExitCode.SUCCEEDED} whole, {ExitCode.BUG} not",
    )
    inspect.add_argument("adapter", type=Path, help="folder of a committed adapter, as train prints it")
    inspect.set_defaults(run=_inspect)

    work = _add_command(
        commands,
        "work",
        "what the pod runs: the mounted configuration, through Celery",
        "Run the configuration that the operator mounted, as a Celery task, and leave the outcome in the termination message. "
        "Nothing to be run by hand: use train.",
        STATUSES,
    )
    work.set_defaults(run=_work)
    return parser


def _add_command(commands: Any, name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, HELP_WIDTH),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _train(parsed: argparse.Namespace, settings: TrainerSettings) -> int:
    from finetune_trainer.reporting.kubeflow import kubeflow_reporters
    from finetune_trainer.reporting.progress import ConsoleReporter, LogReporter, Reporters
    from finetune_trainer.reporting.tracking import tracking_reporters
    from finetune_trainer.tasks.finetuning_task import run_finetuning, run_worker_rank
    from finetune_trainer.training import new_run_id

    config = load_config(parsed.config, model_name_or_path=settings.model_name_or_path)
    run_id = config.job.uid if config.job else parsed.run_id or new_run_id()
    STOP.install()
    if distributed.is_worker_rank():
        configure_logging("WARNING")
        return run_worker_rank(config, STOP, run_id)
    own = ConsoleReporter() if sys.stderr.isatty() else LogReporter()
    reporter = Reporters([own, *kubeflow_reporters(), *tracking_reporters(config, run_id)])
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
    from finetune_trainer.memory.estimate import GIB
    from finetune_trainer.preflight import describe, run_preflight, validate_attempt

    if parsed.config is None:
        return validate_attempt(settings)
    config = load_config(parsed.config, model_name_or_path=settings.model_name_or_path)
    found = run_preflight(config, gpu_memory=int(parsed.gpu_memory * GIB) if parsed.gpu_memory else settings.gpu_memory)
    print(f"config:     {parsed.config} is valid")
    print(describe(config, found))
    for failure in found.failures:
        print(f"{failure.reason}: {failure.message}", file=sys.stderr)
    return found.verdict.exit_code if found.verdict else ExitCode.SUCCEEDED


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
    from finetune_trainer.tasks.worker import work

    return work(settings)


if __name__ == "__main__":
    sys.exit(main())
