"""The work directory before a run: its lock, its claims, a port for the server."""

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import FinetuneJobSpec
from finetune_cli.errors import CommandError
from finetune_cli.local.folders import Folders
from finetune_cli.local.manifest import row_sources

PREDECESSOR_SECONDS: Final = 70
"""How long processes of an earlier command may take to end: a trainer's grace period, and a little more."""
PORT_RANGE: Final = range(8000, 8100)
"""Where the server listens: the first free port."""


def make_work_directory(root: Path) -> None:
    """Make the work directory. Raises CommandError if it cannot be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise CommandError(
            f"--work-dir {root} cannot be written ({error.strerror}); choose another folder, for example --work-dir ~/finetune"
        ) from None


def provide_claims(folders: Folders, spec: FinetuneJobSpec, *, model: str | None, data: Path | None) -> None:
    """Make folders for the claims that the spec names, and links to what the options give. Raises CommandError for one that is not there."""
    problems = []
    source = parse_source(spec.model.source)
    if model is not None and "://" not in model:
        if source.scheme != "pvc":
            raise CommandError(
                f"--model {model}: spec.model.source is {spec.model.source}; a folder replaces pvc:// only"
            )
        link(folders.claim(source.name) / source.path, Path(model), "--model")
    for name, uri in row_sources(spec):
        rows = parse_source(uri)
        if rows.scheme == "pvc" and data is not None and (data / rows.path).exists():
            link(folders.claim(rows.name) / rows.path, data / rows.path, "--data")
        if rows.scheme == "pvc" and not (folders.claim(rows.name) / rows.path).exists():
            problems.append(f"{name}: {uri} is the file {folders.claim(rows.name) / rows.path}, which does not exist")
    folder = folders.claim(source.name) / source.path
    if source.scheme == "pvc" and not folder.is_dir():
        problems.append(
            f"spec.model.source: {spec.model.source} is the folder {folder}, which does not exist; put the model there, "
            "or use --model FOLDER or --model hf://ORG/NAME"
        )
    if spec.suspend:
        problems.append("spec.suspend is true, so nothing would run; set it to false")
    if problems:
        raise CommandError("\n".join(problems))
    folders.claim(spec.output.claim).mkdir(parents=True, exist_ok=True)


@contextmanager
def work_directory_lock(folders: Folders, note: Callable[[str], None]) -> Iterator[int]:
    """Hold the work directory; yields the lock's descriptor, which processes inherit so that it lasts as long as they do.

    Raises CommandError if another command keeps it.
    """
    with folders.lock.open("a") as file:
        deadline = time.monotonic() + PREDECESSOR_SECONDS
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CommandError(
                        f"Another `finetune run` uses {folders.root}; end it, or choose another --work-dir."
                    ) from None
                if not said:
                    note(f"Another `finetune run` uses {folders.root}, or its processes are ending: waiting.")
                    said = True
                time.sleep(0.1)
        yield file.fileno()


def link(path: Path, target: Path, option: str) -> None:
    """Have `path`, a place on a claim, lead to `target`. Raises CommandError for a target that is missing."""
    if not target.exists():
        raise CommandError(f"{option} {target} does not exist")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    if path.exists():
        raise CommandError(
            f"{option} {target}: {path} exists already and is no link; remove it, or leave the option out"
        )
    path.symlink_to(target.resolve())


@contextmanager
def free_port() -> Iterator[int]:
    """Hold the first port of PORT_RANGE that nothing listens on, and that no other run of this user holds.

    The server binds it minutes later, after training. Until then a lock keeps other runs from it, whose server would otherwise
    answer for this one.
    """
    folder = Path(tempfile.gettempdir()) / f"finetune-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for port in PORT_RANGE:
        with (folder / str(port)).open("a") as held, contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            probe.close()
            yield port
            return
    raise CommandError(f"All ports from {PORT_RANGE.start} to {PORT_RANGE.stop - 1} are in use; the server needs one.")


def shown_path(path: Path) -> str:
    """Return a path as people like to read it: relative if it is below the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
