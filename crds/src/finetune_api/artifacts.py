"""Layout of a committed folder on a volume (adapter or checkpoint), and how a reader verifies it.

A folder is complete if and only if it has a `manifest.json` and every file listed there verifies. Writers stage into a
`.partial` folder and rename it (see the trainer's `store.run_store`); readers need not know about that.
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
"""Statistics of the rows: lengths, duplicates, truncated rows."""
RUN_REPORT_FILE: Final = "report.html"
"""Loss curve and row lengths, for people."""
MODEL_CARD_FILE: Final = "README.md"
FINGERPRINT_FILE: Final = "fingerprint.json"
ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"
"""Weights of a LoRA adapter, as peft names the file."""
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
"""Shape of a LoRA adapter (rank, alpha, modules), as peft names the file."""
ADOPT_COMMAND: Final = "python -m finetune_trainer adopt DIRECTORY --model BASE"
"""Command that checks a folder of another program, such as peft, and writes its manifest."""
READ_CHUNK: Final = 1 << 20
"""Bytes hashed at a time."""


class ArtifactError(Exception):
    """A folder that does not verify; the message names the folder and the first thing wrong with it."""


class FileEntry(StatusModel):
    """One file of a folder."""

    path: Annotated[str, Field(description="path relative to the folder, with forward slashes.")]
    size: Annotated[int, Field(description="size in bytes.", ge=0)]
    sha256: Annotated[str, Field(description="sha256 in hex.", min_length=64, max_length=64)]


class AdapterChat(StatusModel):
    """Settings that the adapter's chats are rendered with, and its answers end with; its template is a file of the tokenizer."""

    template_kwargs: Annotated[
        dict[str, Any], Field(description="templateKwargs are variables of the chat template.")
    ] = Field(default_factory=dict)
    system_prompt: Annotated[
        str | None, Field(description="systemPrompt is put before a chat that has no system message.")
    ] = None
    end_tokens: Annotated[
        list[int], Field(description="endTokens are the ids of the tokens that end the learnt answers.")
    ] = Field(default_factory=list)


class Manifest(StatusModel):
    """List of the files that make a folder complete, and the folder's origin."""

    format_version: Annotated[int, Field(description="formatVersion is the version of this document's format.")] = 1
    kind: Annotated[str, Field(description="kind of the folder: adapter or checkpoint.")]
    step: Annotated[int, Field(description="step after which the content was saved.", ge=0)]
    job_uid: Annotated[str | None, Field(description="jobUid is the uid of the FinetuneJob.")] = None
    attempt: Annotated[int | None, Field(description="attempt that committed the folder.")] = None
    base_model: Annotated[str | None, Field(description="baseModel is the source URI or path of the base model.")] = (
        None
    )
    base_revision: Annotated[
        str | None, Field(description="baseRevision is the commit or digest of the base model.")
    ] = None
    base_digest: Annotated[
        str | None,
        Field(
            description="baseDigest is the digest of the base model's configuration and weights; servers compare it."
        ),
    ] = None
    initial_adapter: Annotated[
        str | None, Field(description="initialAdapter is the digest of the adapter that training started from.")
    ] = None
    chat: Annotated[
        AdapterChat | None,
        Field(description="chat says how the adapter's chats are rendered, and how its answers end."),
    ] = None
    files: Annotated[list[FileEntry], Field(description="files of the folder, sorted by path.")]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(manifest_bytes: bytes) -> str:
    """Return the digest of a folder, which is that of its manifest; the manifest has the digest of every file."""
    return f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}"


def read_verified(directory: Path) -> tuple[Manifest, str]:
    """Read the manifest and digest of a complete folder. Raises ArtifactError if a file is missing or differs."""
    manifest_path = directory / MANIFEST_FILE
    try:
        # Checked first because opening a pipe would block until it has a writer.
        if not stat.S_ISREG(manifest_path.lstat().st_mode):
            raise ArtifactError(f"{directory} is not a committed folder: {MANIFEST_FILE} is not a regular file")
        raw = manifest_path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{directory} is not a committed folder: {_unread(directory, error)}") from None
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


def _unread(directory: Path, error: OSError) -> str:
    """Return why a folder's manifest cannot be read, and for another program's folder what to do."""
    if not isinstance(error, FileNotFoundError):
        return f"{MANIFEST_FILE} cannot be read: {error.strerror}"
    if not directory.exists():
        return "it does not exist"
    return f"it has no {MANIFEST_FILE}; if another program saved the adapter, first run {ADOPT_COMMAND}"


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
    """Return the canonical bytes of a manifest, so that the bytes hashed are the bytes written."""
    document: dict[str, Any] = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
