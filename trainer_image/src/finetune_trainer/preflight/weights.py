"""Headers of a model's safetensors files, read without their weights."""

import json
import math
import struct
from pathlib import Path
from typing import Any, Final

from finetune_model.base_digest import WEIGHT_FILES
from finetune_trainer.model.base_model import model_invalid

MAX_HEADER_BYTES: Final = 100_000_000
"""Most bytes of a header, a limit of the format."""
INDEX_FILE: Final = "model.safetensors.index.json"
"""File that maps weights to files, for models in several files."""


def count_weights(folder: Path, shown: str) -> int:
    """Count the numbers in all weights. Raises TrainingError (ModelInvalid) for a missing or truncated file."""
    files = sorted(folder.glob(WEIGHT_FILES))
    promised = _promised_files(folder, shown)
    if missing := sorted(promised - {file.name for file in files}):
        raise model_invalid(shown, f"{missing[0]} is missing, which {INDEX_FILE} names; copy the model again")
    used = [file for file in files if not promised or file.name in promised]
    return sum(_count(file, shown) for file in used)


def _promised_files(folder: Path, shown: str) -> set[str]:
    index = folder / INDEX_FILE
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise model_invalid(shown, f"its {INDEX_FILE} has no weight_map; copy the model again") from None


def _count(file: Path, shown: str) -> int:
    header, size = _header(file, shown)
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    try:
        end = max((entry["data_offsets"][1] for entry in tensors), default=0)
        numbers = sum(math.prod(entry["shape"]) for entry in tensors)
    except (KeyError, TypeError, IndexError):
        raise _broken(shown, file, "its header is not one of safetensors") from None
    if size != end:
        raise _broken(shown, file, f"it holds {size} bytes of weights, its header says {end}")
    return int(numbers)


def _header(file: Path, shown: str) -> tuple[dict[str, Any], int]:
    """Return the header and the number of bytes after it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise _broken(shown, file, f"it has {size} bytes and no whole header")
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            raise _broken(shown, file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _broken(shown, file, "its header is not one of safetensors")
    return header, size - 8 - length


def _broken(shown: str, file: Path, found: str) -> Exception:
    return model_invalid(shown, f"{file.name} is not a complete safetensors file ({found}); copy the model again")
