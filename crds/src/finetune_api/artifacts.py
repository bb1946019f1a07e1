"""What a committed folder on a volume looks like, and how a reader decides whether to believe it.

A folder (adapter or checkpoint) is whole if and only if it has a `manifest.json` whose every file verifies. Writers stage
into a `.partial` folder and rename (see the trainer's `artifacts`); a reader never needs to know about that.
"""

import hashlib
import json
import stat
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from finetune_api.base import StatusModel

MANIFEST_FILE: Final = "manifest.json"
RUN_RECORD_FILE: Final = "run.json"
"""Configuration, versions, seed and digests of the run that made an adapter."""
DATASET_REPORT_FILE: Final = "dataset-report.json"
"""What the rows were like: lengths, duplicates, what was cut."""
RUN_REPORT_FILE: Final = "report.html"
"""Loss curve and lengths of rows, for a person."""
MODEL_CARD_FILE: Final = "README.md"
FINGERPRINT_FILE: Final = "fingerprint.json"
READ_CHUNK: Final = 1 << 20
"""Bytes hashed at a time."""


class ArtifactError(Exception):
    """A folder that cannot be believed; the message names the folder and the first thing wrong with it."""


class FileEntry(StatusModel):
    """One file of a folder."""

    path: Annotated[str, Field(description="path relative to the folder, with forward slashes.")]
    size: Annotated[int, Field(description="size in bytes.", ge=0)]
    sha256: Annotated[str, Field(description="sha256 in hex.", min_length=64, max_length=64)]


class Manifest(StatusModel):
    """The list of files that makes a folder whole, and where it came from."""

    format_version: Annotated[int, Field(description="formatVersion of this document.")] = 1
    kind: Annotated[str, Field(description="kind is adapter or checkpoint.")]
    step: Annotated[int, Field(description="step that the content belongs to.", ge=0)]
    job_uid: Annotated[str | None, Field(description="jobUid of the FinetuneJob.")] = None
    attempt: Annotated[int | None, Field(description="attempt that committed the folder.")] = None
    base_model: Annotated[str | None, Field(description="baseModel as the source URI or path.")] = None
    base_revision: Annotated[str | None, Field(description="baseRevision is the base's commit or digest.")] = None
    initial_adapter: Annotated[
        str | None, Field(description="initialAdapter is the digest of the adapter that training started from.")
    ] = None
    files: Annotated[list[FileEntry], Field(description="files of the folder, sorted by path.")]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(manifest_bytes: bytes) -> str:
    """Digest of a folder: of its manifest, which in turn has the digest of every file."""
    return f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}"


def read_verified(directory: Path) -> tuple[Manifest, str]:
    """Manifest and digest of a whole folder. Raises ArtifactError for anything less than whole."""
    manifest_path = directory / MANIFEST_FILE
    try:
        # Looked at first: opening a pipe would wait for its writer.
        if not stat.S_ISREG(manifest_path.lstat().st_mode):
            raise ArtifactError(f"{directory} is not a committed folder: {MANIFEST_FILE} is not a regular file")
        raw = manifest_path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{directory} is not a committed folder: {MANIFEST_FILE} cannot be read ({error})"
        ) from None
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ArtifactError(f"{manifest_path} is not a manifest: {error.error_count()} problems") from None
    for entry in manifest.files:
        try:
            _verify_file(directory, entry)
        except OSError as error:
            raise ArtifactError(f"{directory / entry.path} cannot be read: {error}") from None
    return manifest, digest_of(raw)


def _verify_file(directory: Path, entry: FileEntry) -> None:
    path = directory / entry.path
    parts = Path(entry.path).parts
    if Path(entry.path).is_absolute() or ".." in parts:
        raise ArtifactError(f"{directory}/{MANIFEST_FILE} names {entry.path!r}, which is outside the folder")
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(f"{path} is missing or not a regular file")
    if (size := path.stat().st_size) != entry.size:
        raise ArtifactError(f"{path} has {size} bytes; its manifest says {entry.size}")
    if (found := sha256_of(path)) != entry.sha256:
        raise ArtifactError(f"{path} has sha256 {found[:12]}…; its manifest says {entry.sha256[:12]}…")


def to_manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical bytes of a manifest: what is hashed is what is written."""
    document: dict[str, Any] = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
