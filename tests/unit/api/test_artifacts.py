"""A folder is believed when every file of its manifest verifies, and never otherwise."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

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


def commit(directory: Path, *, entry_path: str = "weights") -> str:
    directory.mkdir(exist_ok=True)
    weights = directory / "weights"
    weights.write_bytes(b"w" * 100)
    entry = FileEntry(path=entry_path, size=100, sha256=sha256_of(weights))
    raw = to_manifest_bytes(Manifest(kind="adapter", step=3, files=[entry]))
    (directory / MANIFEST_FILE).write_bytes(raw)
    return digest_of(raw)


def test_a_whole_folder_gives_its_manifest_and_digest(tmp_path: Path) -> None:
    digest = commit(tmp_path)
    manifest, found = read_verified(tmp_path)
    assert (manifest.step, manifest.size_bytes, found) == (3, 100, digest)


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (
            lambda d: (d / MANIFEST_FILE).unlink(),
            "not a committed folder: it has no manifest.json; if another program saved the adapter, "
            "first run python -m finetune_trainer adopt DIRECTORY --model BASE$",
        ),
        (lambda d: (d / MANIFEST_FILE).write_text("{"), "not a manifest"),
        (lambda d: (d / "weights").unlink(), "missing"),
        (lambda d: (d / "weights").write_bytes(b"w" * 99), "99 bytes"),
        (lambda d: (d / "weights").write_bytes(b"v" * 100), "sha256"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object], fragment: str) -> None:
    commit(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=fragment):
        read_verified(tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd"])
def test_a_manifest_cannot_reach_outside_its_folder(tmp_path: Path, path: str) -> None:
    commit(tmp_path / "a", entry_path=path)
    with pytest.raises(ArtifactError, match="outside the folder"):
        read_verified(tmp_path / "a")


def test_a_symlink_is_not_a_regular_file(tmp_path: Path) -> None:
    commit(tmp_path)
    (tmp_path / "weights").rename(tmp_path / "elsewhere")
    (tmp_path / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_verified(tmp_path)


def test_a_folder_that_is_absent_or_cannot_be_read_is_not_one_to_adopt(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"/absent is not a committed folder: it does not exist$"):
        read_verified(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"folder: manifest\.json cannot be read: Not a directory$"):
        read_verified(tmp_path / "file")


def test_a_file_that_the_system_cannot_read_is_no_file(tmp_path: Path) -> None:
    commit(tmp_path, entry_path="n" * 300)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_verified(tmp_path)


@pytest.mark.parametrize("replace", [os.mkfifo, lambda p: p.symlink_to(p.with_name("weights")), Path.mkdir])
def test_a_manifest_is_a_regular_file(tmp_path: Path, replace: Callable[[Path], object]) -> None:
    """Reading a pipe that nobody writes to would never end."""
    commit(tmp_path)
    (tmp_path / MANIFEST_FILE).unlink()
    replace(tmp_path / MANIFEST_FILE)
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_verified(tmp_path)
