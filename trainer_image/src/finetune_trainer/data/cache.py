"""Tokenized rows on the output volume, so that another attempt or a similar job need not tokenize again.

A file's name is a hash of everything that determines its content. A broken file or volume costs time and nothing else.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from finetune_trainer.data.token_rows import EndToken, Tokenized, TokenRows, TurnCounts
from finetune_trainer.data.unused import CountedKey

logger = logging.getLogger(__name__)

CACHE_VERSION: Final = 2
"""Part of every key; raise it when the same inputs are tokenized differently."""
MIN_CHARACTERS: Final = 1 << 20
"""Characters below which rows are tokenized in about a second, which is not worth a file."""
KEPT_FILES: Final = 4
"""Number of newest files that are kept; a dataset of 10 million tokens takes 50 MB."""
FREE_SPACE_FACTOR: Final = 10
"""Free space required per file, as a multiple of its size, because checkpoints need the space first."""
STALE_SECONDS: Final = 3600
"""Age in seconds after which a partial file has no writer any more."""


def cache_key(tokenizer: Any, **inputs: Any) -> str:
    """Hash the tokenizer with its chat template, and everything else that determines how rows are tokenized."""
    parts = {
        "version": CACHE_VERSION,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "template": tokenizer.chat_template,
        "special": tokenizer.special_tokens_map,
        **inputs,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class TokenCache:
    """Folder of tokenized datasets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> Tokenized | None:
        """Return the rows stored under `key`; None if there are none, or if the file is torn."""
        path = self._path(key)
        try:
            if not path.is_file():
                return None
            tokenized = _read(path)
        except Exception as error:  # safetensors has its own error class; all of them mean the same here
            logger.warning("cached tokens are not used path=%s problem=%s", path, error)
            return None
        logger.info("tokens come from the cache path=%s tokens=%d", path, tokenized.tokens)
        return tokenized

    def store(self, key: str, tokenized: Tokenized) -> None:
        """Store tokenized rows for the next attempt, if the volume has space to spare."""
        path = self._path(key)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        size = tokenized.tokens * 5 + len(tokenized.rows) * 8
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_old()
            if shutil.disk_usage(self._folder).free < FREE_SPACE_FACTOR * size:
                logger.info("tokens are not cached: the volume has little space left path=%s bytes=%d", path, size)
                return
            _write(partial, tokenized)
            partial.replace(path)
        except Exception as error:  # a full or read-only volume stops no training that has its tokens
            logger.warning("tokens are not cached path=%s problem=%s", path, error)
            with contextlib.suppress(OSError):
                partial.unlink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _remove_old(self) -> None:
        whole = sorted(self._folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime, reverse=True)
        stale = time.time() - STALE_SECONDS
        partial = [p for p in self._folder.glob(".*.partial-*") if p.stat().st_mtime < stale]
        for path in [*whole[KEPT_FILES - 1 :], *partial]:
            path.unlink(missing_ok=True)


def _write(path: Path, tokenized: Tokenized) -> None:
    from safetensors.numpy import save_file

    rows = tokenized.rows
    counts = {
        "truncated": tokenized.truncated,
        "dropped": tokenized.dropped,
        "truncated_places": tokenized.truncated_places,
        "dropped_places": tokenized.dropped_places,
        "turns": asdict(tokenized.turns),
        "unrendered": [asdict(key) for key in tokenized.unrendered],
    }
    arrays = {"input_ids": rows.input_ids, "learnt": rows.learnt, "offsets": rows.offsets}
    save_file(arrays, str(path), metadata={"counts": json.dumps(counts), "sha256": _digest(rows)})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read(path: Path) -> Tokenized:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        metadata = file.metadata()
        rows = TokenRows(*(file.get_tensor(name) for name in ("input_ids", "learnt", "offsets")))
    if _digest(rows) != metadata["sha256"]:
        raise ValueError("its content differs from its digest")
    counts = json.loads(metadata["counts"])
    ends = tuple(EndToken(**end) for end in counts["turns"].pop("ends"))
    return Tokenized(
        rows,
        counts["truncated"],
        counts["dropped"],
        tuple(counts["truncated_places"]),
        tuple(counts["dropped_places"]),
        TurnCounts(ends, **counts["turns"]),
        tuple(CountedKey(**key) for key in counts["unrendered"]),
    )


def _digest(rows: TokenRows) -> str:
    digest = hashlib.sha256()
    for values in (rows.input_ids, rows.learnt, rows.offsets):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
