"""The commands of `finetune`."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from finetune_cli.errors import CommandError

if TYPE_CHECKING:
    from finetune_cli.local.session import Options

DEFAULT_WORK_DIR: Final = Path("finetune-work")

app = typer.Typer(
    name="finetune",
    help="Fine-tuning jobs: the manifest that `kubectl apply` takes, run on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def commands() -> None:
    """Fine-tuning jobs: the manifest that `kubectl apply` takes, run on this machine."""


@app.command()
def run(
    manifest: Annotated[
        Path, typer.Argument(help="YAML file with a FinetuneJob, and the ConfigMaps and Secrets that it names.")
    ],
    work_dir: Annotated[
        Path, typer.Option(help="Folder for claims, adapters, logs and the state that makes a run resumable.")
    ] = DEFAULT_WORK_DIR,
    model: Annotated[
        str | None,
        typer.Option(
            help="Base model: a folder, in place of the claim's; or hf://ORG/NAME, in place of spec.model.source."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with rows: NAME/KEY or NAME.KEY for configmap://NAME/KEY, PATH for pvc://CLAIM/PATH."
        ),
    ] = None,
    ask: Annotated[
        list[str] | None, typer.Option(help="A message for the base and the tuned model at the end; repeatable.")
    ] = None,
    score: Annotated[
        int, typer.Option(min=0, max=64, help="Held-out rows of spec.evaluation that both models answer at the end.")
    ] = 0,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Serve the adapter until Ctrl-C, and show how to ask it.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete the job of an earlier run first, and train anew; its adapter stays.")
    ] = False,
) -> None:
    """Run a FinetuneJob on this machine: validate, train, serve, verify, ask.

    The operator's own code decides, so phases, conditions and messages are those of a cluster. Ctrl-C stops it after a checkpoint,
    and the same command resumes. Exit status: 0 verified, 1 failed, 2 refused, 130 interrupted.
    """
    # What the operator needs takes a second to import; --help should not.
    from finetune_cli.local.session import Options

    options = Options(manifest, work_dir, model, data, tuple(ask or ()), score, keep_serving, fresh)
    raise typer.Exit(_run_session(options))


def _run_session(options: "Options") -> int:
    """Run a session to its exit status; a refusal is one sentence."""
    from finetune_cli.local.folders import Folders
    from finetune_cli.local.session import ExitCode, Session, configure_logging
    from finetune_cli.local.terminal import Terminal
    from finetune_cli.local.work_directory import make_work_directory

    async def session() -> ExitCode:
        return await Session(options, Terminal()).run()

    try:
        make_work_directory(options.work_dir)
        configure_logging(Folders(options.work_dir))
        return asyncio.run(session())
    except CommandError as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
        return ExitCode.REFUSED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    sys.exit(app())
