"""Files of a dataset: compression, encoding, size limits, and files that are not what their name says.

Users supply the files, so every limit has a reason: a megabyte of gzip can unpack to a gigabyte, a line may never end, and a
failed download is often a web page with the expected name.
"""

import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from finetune_api.reasons import Reason
from finetune_trainer.data.problems import invalid, listed
from finetune_trainer.errors import TrainingError

SUFFIXES: Final = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
"""pyarrow codecs by the last suffix of a name."""
MIB: Final = 1 << 20
MAX_DATASET_BYTES: Final = 4096 * MIB
"""Most bytes after unpacking: rows are held in memory, and a billion tokens is far beyond what LoRA needs."""
MAX_ROW_BYTES: Final = 16 * MIB
"""Most bytes of a row: a hundred times the longest `maxLength`; anything larger is a file without line breaks."""
MAX_RATIO: Final = 200
"""Largest plausible ratio of unpacked to packed size: JSON compresses 5 to 30 times, a bomb a thousand times and more."""
RATIO_FREE_BYTES: Final = 64 * MIB
"""Unpacked bytes up to which any ratio is harmless."""
_MAGIC_CODECS: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN: Final[tuple[tuple[bytes, str], ...]] = (
    (b"PAR1", "is a Parquet file by its content; name it .parquet"),
    (b"PK\x03\x04", "is a ZIP archive or an Excel file; unpack it, or save it as CSV"),
    (b"BZh", "is compressed with bzip2; use gzip or zstd"),
    (b"\xfd7zXZ", "is compressed with xz; use gzip or zstd"),
    (b"\xff\xfe", "is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file that it stands for; run `git lfs pull`"),
    (b"<!doctype", "is a web page, not rows; download the file itself, not the page that shows it"),
    (b"<html", "is a web page, not rows; download the file itself, not the page that shows it"),
    (b"<?xml", "is XML; expected JSON Lines, JSON, CSV or Parquet"),
    (b"%pdf", "is a PDF; expected JSON Lines, JSON, CSV or Parquet"),
    (b"\x80\x02", "is a Python pickle, which is never loaded; save it as JSON Lines or Parquet"),
    (b"\x80\x03", "is a Python pickle, which is never loaded; save it as JSON Lines or Parquet"),
    (b"\x80\x04", "is a Python pickle, which is never loaded; save it as JSON Lines or Parquet"),
    (b"\x80\x05", "is a Python pickle, which is never loaded; save it as JSON Lines or Parquet"),
)
"""First bytes (in lower case where they are letters) of what people name .jsonl by mistake, and what to do about it."""
_BOM: Final = b"\xef\xbb\xbf"


def check_file(path: Path, shown: str) -> None:
    """Raise TrainingError (DatasetNotFound, DatasetInvalid) unless `path` is a regular file within the size limit."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise _not_found(f"{shown} does not exist; expected {_expected(path.parent)}") from None
    except (OSError, ValueError) as error:
        raise _not_found(f"{shown} cannot be read ({error.__class__.__name__})") from None
    if stat.S_ISDIR(found.st_mode):
        raise _not_found(f"{shown} is a folder; expected {_expected(path)}")
    if not stat.S_ISREG(found.st_mode):
        raise _not_found(f"{shown} is a pipe, socket or device; expected a regular file")
    if found.st_size > MAX_DATASET_BYTES:
        raise too_large(shown)


def _expected(folder: Path) -> str:
    """Name the files that exist, because most missing files are misspelt; else the kinds of files that are read."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except OSError:
        names = []
    return f"one of {listed(names)}" if names else f"a file ({', '.join(SUFFIXES)})"


def suffix_of(path: Path, shown: str) -> str:
    """Return the suffix (one of `SUFFIXES`) that selects the parser; .jsonl without one, because a ConfigMap key needs none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            raise invalid(f"{shown} is Parquet inside {path.suffix}; Parquet compresses by itself, unpack the file")
    suffix = suffixes[-1] if suffixes else ".jsonl"
    if suffix not in SUFFIXES:
        raise invalid(
            f"{shown} ends in {path.suffix}; expected one of {', '.join(SUFFIXES)}, where text may be followed by "
            f"{' or '.join(COMPRESSIONS)}"
        )
    return suffix


def open_text(path: Path, shown: str) -> BinaryIO:
    """Open the file as unpacked bytes. Reading raises TrainingError (DatasetInvalid) for a broken file or a bomb."""
    with path.open("rb") as file:
        magic = file.read(4)
    codec = next((codec for start, codec in _MAGIC_CODECS.items() if magic.startswith(start)), None)
    promised = COMPRESSIONS.get(path.suffix.lower())
    if promised and codec != promised and magic:
        raise invalid(f"{shown} ends in {path.suffix}, but is not compressed with {promised}")
    if codec is None:
        stream: BinaryIO = path.open("rb")
    else:
        stream = io.BufferedReader(_Unpacked(path, codec, shown), buffer_size=MIB)
    _check_first_bytes(stream, shown)
    return stream


def lines_of(stream: BinaryIO, shown: str) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers from 1. Only a line feed ends a line, because JSON text may hold other separators."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise invalid(
                f"{shown} line {number} is longer than {MAX_ROW_BYTES // MIB} MiB; expected one row a line. A JSON list "
                "belongs into a file that ends in .json"
            )
        yield number, line.removeprefix(_BOM) if number == 1 else line


def too_large(shown: str) -> TrainingError:
    """Return the error of a file whose rows would not fit in memory."""
    return invalid(f"{shown} has more than {MAX_DATASET_BYTES // MIB} MiB of rows; use fewer rows")


def check_unpacked(unpacked: int, packed: int, shown: str) -> None:
    """Raise TrainingError (DatasetInvalid) if the content is too large, or unpacks implausibly far; sizes in bytes."""
    if unpacked > MAX_DATASET_BYTES:
        raise too_large(shown)
    if unpacked > max(RATIO_FREE_BYTES, MAX_RATIO * packed):
        raise invalid(
            f"{shown} unpacks to more than {MAX_RATIO} times its size, as text never does; upload it as JSON Lines, not "
            "compressed, if it is a dataset all the same"
        )


class _Unpacked(io.RawIOBase):
    """Stream of a compressed file's content that raises as soon as it unpacks too far."""

    def __init__(self, path: Path, codec: str, shown: str) -> None:
        import pyarrow as pa

        self._stream: Any = pa.CompressedInputStream(pa.OSFile(str(path), "rb"), codec)
        self._codec = codec
        self._packed = path.stat().st_size
        self._unpacked = 0
        self._shown = shown

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = int(self._stream.readinto(buffer))
        except OSError as error:
            if error.errno is not None:  # the volume's, not the codec's
                raise
            raise invalid(f"{self._shown} is broken {self._codec} ({error}); upload it again") from None
        self._unpacked += count
        check_unpacked(self._unpacked, self._packed, self._shown)
        return count


def _check_first_bytes(stream: Any, shown: str) -> None:
    start: bytes = stream.peek(4096)[:4096]
    content = start.lstrip()
    for magic, problem in _FOREIGN:
        if start.startswith(magic) or content[:32].lower().startswith(magic):
            raise invalid(f"{shown} {problem}")
    if b"\0" in start:
        raise invalid(
            f"{shown} has NUL bytes; it is binary, or UTF-16 text, or was not written to its end. Expected UTF-8 text"
        )


def _not_found(message: str) -> TrainingError:
    return TrainingError(Reason.DATASET_NOT_FOUND, message[:1].upper() + message[1:])
