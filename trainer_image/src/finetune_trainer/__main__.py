"""Fine-tune a causal language model with LoRA, with or without Kubernetes: from rows and a base model to an adapter."""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

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

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it

HELP_WIDTH: Final = 100
"""Characters per line of `--help`."""

EXAMPLE: Final = """\
a minimal config.yaml:
  model: {path: /models/SmolLM2-135M-Instruct}          # a checkpoint folder, or ORG/NAME of a model hub
  dataset: {path: train.jsonl}                          # also .json, .csv, .parquet; https://, s3://, hf://
  output: {directory: adapters, adapterName: my-adapter}

rows of train.jsonl, in one of these formats:
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
  {"prompt": "Hi", "completion": "Hello!"}
  {"text": "Any text; all of it is learned."}
  {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}      (with dpo: {})

more settings, all optional (these are the defaults, except evaluation):
  evaluation: {path: held-out.jsonl}                    # or dataset.evaluationFraction: 0.1
  hyperparameters: {epochs: 3, batchSize: 8, learningRate: 2.0e-4, maxLength: 1024}
  lora: {rank: 8, alpha: 16}

The fields are those of a FinetuneJob (crds/docs/finetunejob.md). The environment variable MODEL_NAME_OR_PATH
replaces model.path."""

STATUSES: Final = f"""\
exit status: {ExitCode.SUCCEEDED} success, {ExitCode.CONFIG_INVALID} invalid config, {ExitCode.DATASET_INVALID} invalid dataset, \
{ExitCode.MODEL_INVALID} invalid model, {ExitCode.STORAGE_FULL} disk full,
{ExitCode.INTERRUPTED} interrupted (can be resumed), {ExitCode.BUG} any other error"""


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
        epilog="start with: validate CONFIG, then train CONFIG; for details and an example: COMMAND --help",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_validate(commands)
    _add_inspect(commands)
    _add_adopt(commands)
    _add_work(commands)
    return parser


def _add_train(commands: "Commands") -> None:
    train = _add_command(
        commands,
        "train",
        "run a configuration by hand, without Kubernetes",
        "Train an adapter and commit it to output.directory/adapterName/RUN_ID, with a record and a report of its run. "
        "Progress goes to stderr, the adapter's folder to stdout. An interrupted run (also by Ctrl-C) saves a checkpoint and "
        "prints the command that resumes it; the resulting adapter is the same.",
        f"{EXAMPLE}\n\n{STATUSES}",
    )
    train.add_argument("config", type=Path, help="configuration, as YAML or JSON")
    train.add_argument(
        "--run-id", help="name of the adapter's folder (default: the time); use that of an interrupted run to resume it"
    )
    train.set_defaults(run=_train)


def _add_validate(commands: "Commands") -> None:
    validate = _add_command(
        commands,
        "validate",
        "check everything that can be checked without training: dataset, model, memory, disk",
        "Check a configuration without training and without a GPU, and list all mistakes at once: fields, each row of the "
        "dataset, the model, and whether memory and disk suffice. Prints a report about the dataset, and writes nothing.",
        f"{EXAMPLE}\n\n{STATUSES}",
    )
    validate.add_argument(
        "config", type=Path, nargs="?", help="configuration, as YAML or JSON (default: the one mounted into a pod)"
    )
    validate.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="memory of the GPU that the run will have (default: train on this machine's CPU)",
    )
    validate.set_defaults(run=_validate)


def _add_inspect(commands: "Commands") -> None:
    inspect = _add_command(
        commands,
        "inspect",
        "verify an adapter's files and show its record",
        "Verify the files of an adapter against the digests of its manifest, and show its base model, how much it changes "
        "answers, and the record of its run: configuration, versions, metrics.",
        f"exit status: {ExitCode.SUCCEEDED} intact, {ExitCode.BUG} missing or damaged",
    )
    inspect.add_argument("adapter", type=Path, help="folder of a committed adapter, as train prints it")
    inspect.set_defaults(run=_inspect)


def _add_adopt(commands: "Commands") -> None:
    adopt = _add_command(
        commands,
        "adopt",
        "take over an adapter that another program trained",
        "Check a folder that peft saved (TRL, Axolotl, LLaMA-Factory, Unsloth) by the rules of the server, take its fingerprint, "
        "and commit it with a manifest to OUTPUT/NAME, like an adapter of train. The folder itself is only read. The same folder "
        "is adopted once.",
        f"exit status: {ExitCode.SUCCEEDED} adopted, {ExitCode.CONFIG_INVALID} not an adapter that can be served, "
        f"{ExitCode.MODEL_INVALID} invalid model, {ExitCode.STORAGE_FULL} disk full",
    )
    adopt.add_argument("directory", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    adopt.add_argument(
        "--model", required=True, help="base model of the adapter: a checkpoint folder, or ORG/NAME of a model hub"
    )
    adopt.add_argument("--name", help="name of the adapter (default: that of the folder)")
    adopt.add_argument(
        "--output", type=Path, default=Path("adapters"), help="folder to commit to (default: %(default)s)"
    )
    adopt.set_defaults(run=_adopt)


def _add_work(commands: "Commands") -> None:
    work = _add_command(
        commands,
        "work",
        "run the mounted configuration of a pod, through Celery",
        "Run the configuration that the operator mounted, as a Celery task, and write the outcome into the termination "
        "message. Not meant to be run by hand: use train.",
        STATUSES,
    )
    work.set_defaults(run=_work)


def _add_command(
    commands: "Commands", name: str, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, HELP_WIDTH),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _train(parsed: argparse.Namespace, settings: TrainerSettings) -> int:
    from finetune_trainer.reporting.kubeflow import kubeflow_reporters
    from finetune_trainer.reporting.progress import ConsoleReporter, LogReporter, Reporters
    from finetune_trainer.reporting.tracking.reporter import tracking_reporters
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
            print(f"Resume with: python -m finetune_trainer train {parsed.config} --run-id {run_id}", file=sys.stderr)
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
    print(f"intact:   {len(manifest.files)} files, {manifest.size_bytes} bytes, digest {digest}")
    print(f"base:     {manifest.base_model}, revision {manifest.base_revision}")
    print(f"job:      {manifest.job_uid}, attempt {manifest.attempt}, step {manifest.step}")
    fingerprint = parsed.adapter / FINGERPRINT_FILE
    if fingerprint.exists():
        effect = Fingerprint.model_validate_json(fingerprint.read_text()).effect
        print(f"effect:   {effect:.4f} nats per token between tuned and base model")
    record = parsed.adapter / RUN_RECORD_FILE
    if record.exists():
        print("record:   " + json.dumps(json.loads(record.read_text()), indent=2, ensure_ascii=False))
    return ExitCode.SUCCEEDED


def _adopt(parsed: argparse.Namespace, _settings: TrainerSettings) -> int:
    from finetune_trainer.adoption import adopt
    from finetune_trainer.errors import as_training_error

    try:
        adopted = adopt(parsed.directory, parsed.model, parsed.output, parsed.name)
    except OSError as error:
        raise as_training_error(error) from error
    committed = adopted.committed
    print(f"{'adopted' if adopted.is_new else 'is adopted already'}: {parsed.directory}")
    print(f"base:     {committed.manifest.base_model}, digest {committed.manifest.base_digest}")
    print(f"effect:   {adopted.effect:.4f} nats per token between tuned and base model")
    if adopted.left_out:
        print(f"left out: {', '.join(adopted.left_out)}")
    for remark in adopted.remarks:
        print(f"warning:  {remark}")
    print(f"digest:   {committed.digest}")
    print(f"adapter:  {committed.path}")
    return ExitCode.SUCCEEDED


def _work(_parsed: argparse.Namespace, settings: TrainerSettings) -> int:
    from finetune_trainer.tasks.worker import work

    return work(settings)


if __name__ == "__main__":
    sys.exit(main())
