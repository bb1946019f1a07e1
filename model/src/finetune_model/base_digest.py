"""Identity of a base model's files: the digest that the trainer records with an adapter and that the server compares.

Only the standard library and the hub's cache: computing it needs neither weights in memory nor a network.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

WEIGHT_FILES: Final = "*.safetensors"
FULL_DIGEST_BYTES: Final = 1 << 30
"""Size in bytes up to which weights are hashed whole (about a second); larger ones are sampled."""
SAMPLES: Final = 64
SAMPLE_BYTES: Final = 1 << 16
DIGEST_PREFIXES: Final = ("sha256:", "sampled-sha256:")
COMMIT_LENGTH: Final = 40
"""Characters of a commit of a hub repository."""

FileIdentity = tuple[str, int, int, int]
"""Path, inode, size in bytes and time of change in ns of a file, which differ once its content was replaced."""


@dataclass(frozen=True)
class BaseIdentity:
    """Identity of a base model."""

    path: str
    """Path or hub repository by which it was requested."""
    digest: str
    commit: str | None
    """Commit of a hub model; None for a local folder."""
    is_quantized: bool


def read_identity(path: str, revision: str | None = None) -> BaseIdentity:
    """Return the identity of a model in a folder or in the hub's cache. Raises OSError if it has no such files."""
    folder = Path(path)
    is_local = folder.is_absolute() or folder.exists()
    if not is_local:
        folder = _cached_folder(path, revision)
    config = json.loads((folder / "config.json").read_bytes())
    is_quantized = isinstance(config, dict) and bool(config.get("quantization_config"))
    return BaseIdentity(path, digest_of_weights(folder), None if is_local else folder.name, is_quantized)


def digest_of_weights(folder: Path) -> str:
    """Hash config.json and all safetensors files: every byte up to 1 GiB, else sizes, headers and samples.

    A sampled digest says so in its prefix. It tells two models apart that differ anywhere near the samples (start, end and
    64 places in between of every file), which any tuned or quantized variant of a model does. The digest is computed once per
    process for files that do not change.
    """
    return _digest(tuple(_identity(file) for file in [folder / "config.json", *sorted(folder.glob(WEIGHT_FILES))]))


def difference(
    base: BaseIdentity, *, recorded_digest: str | None, recorded_revision: str | None
) -> tuple[str, str] | None:
    """Return what an adapter records of its base model and what `base` has instead; None if they agree.

    None also where nothing is comparable: no record, or a commit on one side and a digest on the other.
    """
    recorded = recorded_digest or recorded_revision or ""
    if recorded.startswith(DIGEST_PREFIXES):
        found: str | None = base.digest
    else:
        found = base.commit if len(recorded) == COMMIT_LENGTH else None
    return None if found in (None, recorded) or found is None else (recorded, found)


@lru_cache(maxsize=8)
def _digest(files: tuple[FileIdentity, ...]) -> str:
    whole = sum(size for _, _, size, _ in files) <= FULL_DIGEST_BYTES
    digest = hashlib.sha256()
    for name, _, size, _ in files:
        file = Path(name)
        content = _whole(file) if whole else _sampled(file)
        digest.update(f"{file.name} {size} {content}\n".encode())
    return f"{'sha256' if whole else 'sampled-sha256'}:{digest.hexdigest()}"


def _identity(file: Path) -> FileIdentity:
    status = file.stat()
    return str(file), status.st_ino, status.st_size, status.st_mtime_ns


def _whole(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sampled(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for i in range(SAMPLES + 1):
            stream.seek(max(0, size - SAMPLE_BYTES) * i // SAMPLES)
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _cached_folder(repository: str, revision: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json", revision=revision or "main")
    if not isinstance(found, str):
        raise FileNotFoundError(f"{repository} is not in the hub's cache")
    return Path(found).parent
