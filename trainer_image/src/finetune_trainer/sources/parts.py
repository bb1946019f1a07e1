"""Rows of a run's sources: downloaded, digested, parsed, limited and weighted, in the order in which the sources are named."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from finetune_api.reasons import Reason
from finetune_api.training import DatasetConfig, RowsConfig, TrainingConfig
from finetune_api.v1alpha1 import Columns, DatasetFormat
from finetune_trainer import data
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.problems import invalid
from finetune_trainer.data.selection import Draw, limit_rows, weigh_rows
from finetune_trainer.data.unused import CountedKey, KeyCounter, added
from finetune_trainer.errors import TrainingError, on_scratch
from finetune_trainer.sources import fetch

DOWNLOADED: Final = "downloaded.json"
"""List of the files in a download folder; written once all of them are complete."""


@dataclass(frozen=True)
class Part:
    """Rows of one source."""

    examples: list[data.Example]
    row_format: data.Format
    digest: str
    unused: tuple[CountedKey, ...]
    """Keys that say nothing to the training."""


@dataclass(frozen=True)
class SourceUse:
    """Use of one of several sources, for the record and the report."""

    source: str
    """URI by which users know the rows."""
    digest: str
    rows: int
    """Rows that the source has."""
    weight: float
    used: int
    """Rows that are used per epoch or held out, copies included."""
    left_out: int
    """Rows of which no copy is used."""


@dataclass(frozen=True)
class Mixture:
    """Rows of all sources as they are used."""

    examples: list[data.Example]
    """Selected rows; a row that is used several times is the same object."""
    row_format: data.Format
    digest: str
    """Digest of the only source, or of the sources' digests in their order."""
    left_out: int
    """Rows that limits and weights left out."""
    uses: tuple[SourceUse, ...]
    """Use of each source; empty without `dataset.sources`."""
    unused: tuple[CountedKey, ...]
    """Keys of all rows that say nothing to the training."""


def read_mixture(config: TrainingConfig, settings: SourceSettings) -> Mixture:
    """Read the training rows of all sources, and select those that are used.

    Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid) with the problems of all sources.
    """
    dataset = config.dataset
    draw = Draw(config.hyperparameters.seed, shuffled=dataset.shuffle)
    parts = _read_sources(config, settings) if dataset.sources else [read_part(config, dataset, "dataset", settings)]
    _require_one_format(parts)
    chosen = []
    for index, part in enumerate(parts):
        rows: list[data.Example] = part.examples
        if dataset.sources:
            source = dataset.sources[index]
            rows = limit_rows(rows, source.max_rows, draw, str(index))
            rows = weigh_rows(rows, source.weight, draw, str(index))
        chosen += [(index, example) for example in rows]
    chosen = limit_rows(chosen, dataset.max_rows, draw, "dataset")
    uses = [_use(dataset, index, part, [e for i, e in chosen if i == index]) for index, part in enumerate(parts)]
    return Mixture(
        [example for _, example in chosen],
        parts[0].row_format,
        parts[0].digest if len(parts) == 1 else _joined([part.digest for part in parts]),
        sum(use.left_out for use in uses),
        tuple(uses) if dataset.sources else (),
        added([part.unused for part in parts]),
    )


def distinct(examples: Sequence[data.Example]) -> list[data.Example]:
    """Return each row once, however often it is used."""
    return list({id(example): example for example in examples}.values())


def _use(dataset: DatasetConfig, index: int, part: Part, used: list[data.Example]) -> SourceUse:
    rows = dataset.sources[index] if dataset.sources else dataset
    return SourceUse(
        source=rows.source or rows.path or "inline",
        digest=part.digest,
        rows=len(part.examples),
        weight=dataset.sources[index].weight if dataset.sources else 1.0,
        used=len(used),
        left_out=len(part.examples) - len(distinct(used)),
    )


def _joined(digests: Sequence[str]) -> str:
    # As the digest of several files, in `data.digest_rows`.
    text = " ".join(digest.removeprefix("sha256:") for digest in digests)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _read_sources(config: TrainingConfig, settings: SourceSettings) -> list[Part]:
    """Read every source, so that the problems of all of them are reported together."""
    _require_one_host(config, settings)
    parts, failures = [], []
    for index, source in enumerate(config.dataset.sources or ()):
        name = f"dataset.sources[{index}]"
        try:
            part = read_part(
                config,
                source,
                name,
                settings,
                columns=source.columns or config.dataset.columns,
                folder=f"dataset-{index}",
            )
        except TrainingError as error:
            failures.append(error)
            continue
        examples = [replace(example, where=f"sources[{index}] {example.where}") for example in part.examples]
        unused = tuple(replace(key, first=f"sources[{index}] {key.first}") for key in part.unused)
        parts.append(replace(part, examples=examples, unused=unused))
    if failures:
        first = next((failure for failure in failures if not failure.retryable), failures[0])
        others = [failure.message for failure in failures if failure is not first]
        message = ". ".join(text.removesuffix(".") for text in [first.message, *others])
        raise TrainingError(first.reason, message, retryable=first.retryable)
    return parts


def _require_one_host(config: TrainingConfig, settings: SourceSettings) -> None:
    """Refuse to send one token to several hosts, because each would learn the token of the other."""
    rows = [*(config.dataset.sources or ()), *([config.evaluation] if config.evaluation else [])]
    urls = [urllib.parse.urlsplit(part.path) for part in rows if part.path and part.path.startswith(("hf:", "https:"))]
    hosts = {"the hub" if url.scheme == "hf" else url.netloc.lower() for url in urls}
    if settings.token and len(hosts) > 1:
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"dataset.secretRef holds one token, and the sources are on several hosts: {', '.join(sorted(hosts))}. Copy the "
            "rows of all but one to a claim or an s3:// bucket",
        )


def _require_one_format(parts: Sequence[Part]) -> None:
    if len({part.row_format for part in parts}) > 1:
        found = ", ".join(f"sources[{index}] {part.row_format}" for index, part in enumerate(parts))
        raise invalid(f"dataset.sources have rows of several formats: {found}; expected one, mapped with columns")


def read_part(
    config: TrainingConfig,
    rows: RowsConfig,
    name: str,
    settings: SourceSettings,
    *,
    row_format: DatasetFormat | None = None,
    columns: Columns | None = None,
    folder: str | None = None,
) -> Part:
    """Read and check the rows of one source; `folder` is the name of its download folder, `name` by default.

    Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid).
    """
    unused = KeyCounter()
    with _download_folder(settings, folder or name) as downloads:
        files = _fetch_files(rows.path, downloads, settings, name) if rows.path else []
        digest = data.digest_rows(rows, files, name)
        examples, found = data.read_examples(
            rows,
            row_format=row_format or config.dataset.format,
            columns=columns or config.dataset.columns,
            loss_on=config.hyperparameters.loss_on,
            name=name,
            files=files,
            pairs=config.dpo is not None,
            unused=unused,
            strict=bool(config.dataset.strict),
        )
        # Cached tokens and the adapter's record refer to this digest, so it must be that of the rows that were parsed.
        if data.digest_rows(rows, files, name) != digest:
            raise TrainingError(
                Reason.DATASET_INVALID, f"{name} changed while it was read; leave it unchanged", retryable=True
            )
        return Part(examples, found, digest, unused.counts())


@contextlib.contextmanager
def _download_folder(settings: SourceSettings, name: str) -> Iterator[Path]:
    """Provide a folder for downloads: a temporary one, or one that another process may have downloaded into."""
    if settings.downloads is None:
        with tempfile.TemporaryDirectory(prefix="finetune-rows-") as folder:
            yield Path(folder)
        return
    kept = settings.downloads / name
    kept.mkdir(parents=True, exist_ok=True)
    yield kept
    if not settings.keep_downloads:
        shutil.rmtree(kept, ignore_errors=True)


def _fetch_files(path: str, folder: Path, settings: SourceSettings, name: str) -> list[Path]:
    listing = folder / DOWNLOADED
    if listing.is_file():
        return [folder / file for file in json.loads(listing.read_text())]
    with on_scratch(f"{name} {path}"):
        files = fetch(path, folder, settings, name=name)
    if settings.keep_downloads and "://" in path:
        listing.write_text(json.dumps([str(file.relative_to(folder)) for file in files]))
    return files
