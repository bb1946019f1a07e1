"""Everything the trainer writes to the output volume, and the protocol that makes it all-or-nothing.

    <output>/<adapter name>/<run id>/                    a committed adapter
    <output>/.jobs/<run id>/attempt                      fencing token: one attempt number a line, the highest counts
    <output>/.jobs/<run id>/checkpoints/step-<n>/        a committed checkpoint
    …/.<name>.partial-<attempt>/                         staging; never read, swept by the next attempt

A folder is committed by: write into staging on the same volume, fsync each file, add the manifest with their sha256, fsync
the folder, ask the fence, rename, fsync the parent. A crash at any point leaves either the whole folder or none. The run id
is the job's uid, so a job has one adapter however many attempts it took.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from finetune_api.artifacts import (
    MANIFEST_FILE,
    ArtifactError,
    FileEntry,
    Manifest,
    digest_of,
    read_verified,
    sha256_of,
    to_manifest_bytes,
)
from finetune_api.training import JobIdentity, TrainingConfig
from finetune_trainer.store.fence import Fence, fsync_directory

logger = logging.getLogger(__name__)

JOBS_FOLDER: Final = ".jobs"
_PARTIAL = re.compile(r"^\..+\.partial-(?P<attempt>\d+)$")
_STEP = re.compile(r"^step-(?P<step>\d+)$")


@dataclass(frozen=True)
class Committed:
    """Folder whose manifest verifies."""

    path: Path
    manifest: Manifest
    digest: str


class RunStore:
    """Folders of one run on the output volume."""

    def __init__(self, output: Path, adapter_name: str, run_id: str, attempt: int) -> None:
        self.adapter = output / adapter_name / run_id
        """Folder of the committed adapter."""
        self.attempt = attempt
        self.fence = Fence(output / JOBS_FOLDER / run_id / "attempt", attempt)
        self._checkpoints = output / JOBS_FOLDER / run_id / "checkpoints"

    @classmethod
    def of_job(cls, config: TrainingConfig, job: JobIdentity) -> Self:
        """Create the store of an attempt."""
        return cls(Path(config.output.directory), config.output.adapter_name, job.uid, job.attempt)

    @property
    def checkpoint_staging(self) -> Path:
        """Folder that checkpoints are written into, one subfolder each."""
        return self._checkpoints / f".checkpoint.partial-{self.attempt}"

    @property
    def adapter_staging(self) -> Path:
        """Folder that the adapter is written into."""
        return _staging(self.adapter, self.attempt)

    def open(self) -> None:
        """Register with the fence and remove the staging folders of older attempts."""
        self.fence.acquire()
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self.adapter.parent.mkdir(parents=True, exist_ok=True)
        for folder in (*self._checkpoints.glob(".*"), *self.adapter.parent.glob(f".{self.adapter.name}.*")):
            match = _PARTIAL.match(folder.name)
            if match and int(match["attempt"]) <= self.attempt:
                shutil.rmtree(folder, ignore_errors=True)
                logger.info("removed leftover path=%s", folder)

    def stage_adapter(self) -> Path:
        """Return an empty staging folder for the adapter. Raises TrainingError (Fenced) if a newer attempt has started."""
        return self._stage(self.adapter_staging)

    def stage_checkpoint(self, step: int) -> Path:
        """Return an empty staging folder for a checkpoint. Raises TrainingError (Fenced) if a newer attempt has started."""
        return self._stage(self.checkpoint_staging / f"step-{step}")

    def committed_adapter(self) -> Committed | None:
        """Return the adapter of this run if an earlier attempt committed it."""
        return _read(self.adapter)

    def commit_adapter(self, manifest: Manifest) -> Committed:
        """Commit the staged adapter; a verified adapter that exists already stays."""
        return self._commit(self.adapter_staging, self.adapter, manifest)

    def commit_checkpoint(self, staged: Path, manifest: Manifest) -> Committed:
        """Commit a staged checkpoint as `step-<n>`."""
        return self._commit(staged, self._checkpoints / f"step-{manifest.step}", manifest)

    def checkpoint_steps(self) -> list[int]:
        """Return the steps of all checkpoints on the volume, oldest first, torn ones included."""
        if not self._checkpoints.is_dir():
            return []
        return sorted(int(m["step"]) for p in self._checkpoints.iterdir() if (m := _STEP.match(p.name)))

    def newest_checkpoint(self) -> Committed | None:
        """Return the newest checkpoint that verifies, and remove torn ones, because they would count among those to keep."""
        for step in reversed(self.checkpoint_steps()):
            folder = self._checkpoints / f"step-{step}"
            if checkpoint := _read(folder):
                return checkpoint
            _remove_committed(folder)
        return None

    def prune_checkpoints(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for step in self.checkpoint_steps()[:-keep]:
            _remove_committed(self._checkpoints / f"step-{step}")

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints; called once the adapter is committed. The fence stays."""
        for step in self.checkpoint_steps():
            _remove_committed(self._checkpoints / f"step-{step}")
        shutil.rmtree(self._checkpoints, ignore_errors=True)

    def discard_staging(self) -> None:
        """Remove this attempt's staging folders, so that a failed attempt frees its space."""
        for folder in (self.checkpoint_staging, self.adapter_staging):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise TrainingError (Fenced) instead of a missing file, if a newer attempt swept the staging folder away."""
        try:
            yield
        except OSError:
            self.fence.check()
            raise

    def _stage(self, folder: Path) -> Path:
        # Checked before writing too, because nobody would sweep the remains of an attempt that was overtaken long ago.
        self.fence.check()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _commit(self, staged: Path, target: Path, manifest: Manifest) -> Committed:
        with self.writing():
            complete = manifest.model_copy(update={"files": _seal(staged)})
            raw = to_manifest_bytes(complete)
            write_durably(staged / MANIFEST_FILE, raw)
            fsync_directory(staged)
        self.fence.check()
        try:
            staged.rename(target)
        except OSError:
            # A newer attempt may have started since, and swept this one's staging.
            self.fence.check()
            # A rename cannot replace a folder with files. A verified one stays: an earlier attempt committed it.
            if existing := _read(target):
                shutil.rmtree(staged, ignore_errors=True)
                return existing
            if not target.exists():
                raise
            torn = _staging(target.with_name(f"{target.name}.torn"), self.attempt)
            shutil.rmtree(torn, ignore_errors=True)
            target.rename(torn)
            staged.rename(target)
            shutil.rmtree(torn, ignore_errors=True)
        fsync_directory(target.parent)
        return Committed(target, complete, digest_of(raw))


def _staging(target: Path, attempt: int) -> Path:
    return target.parent / f".{target.name}.partial-{attempt}"


def _read(folder: Path) -> Committed | None:
    if not folder.exists():
        return None
    try:
        manifest, digest = read_verified(folder)
    except ArtifactError as error:
        logger.warning("ignored torn folder path=%s problem=%s", folder, error)
        return None
    return Committed(folder, manifest, digest)


def _seal(folder: Path) -> list[FileEntry]:
    """Flush every file to disk and list it in the manifest."""
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_FILE):
        # safetensors creates its files for the owner only; servers may run under another uid.
        path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        entries.append(
            FileEntry(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))
        )
    return entries


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove_committed(folder: Path) -> None:
    """Remove a committed folder, its manifest first, so that a crash in between leaves nothing that verifies."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
