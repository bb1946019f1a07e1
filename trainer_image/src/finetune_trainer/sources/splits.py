"""Configs and splits of a hub dataset, from its card and from the names of its files. Pure.

A card may declare its configs (`configs` with `data_files`); it then has the last word, as at the hub. Otherwise folders and
names decide: data/train-00000-of-00002.parquet, train.jsonl, CONFIG/test-00000-of-00001.parquet, train/0000.parquet.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final

from finetune_trainer.data.files import COMPRESSIONS, SUFFIXES
from finetune_trainer.data.problems import invalid, listed

DEFAULT_CONFIG: Final = "default"
"""Name of the config of files that belong to no other."""
DATA_FOLDER: Final = "data"
"""Folder that is no config."""
NO_ROWS: Final = ("dataset_infos.json", "dataset_info.json", "config.json")
"""JSON files that describe a dataset and hold no rows."""
TRAIN: Final = re.compile(r"(^|(?<!pre)[_.-])train([_.-]|$)")
"""Pattern of names of training splits, for example train_sft."""
SPLIT_FOLDER: Final = re.compile(r"train(ing)?|valid(ation)?|val|dev|test(ing)?|eval(uation)?")
"""Names of folders that stand for a split."""
SHARD: Final = re.compile(r"(^|[_-])\d+(-of-\d+(-[0-9a-f]{16})?)?(?=\.[^/]*$)")
"""Shard number of a split, before the suffixes: -00000-of-00002 (older ones with a hash), -0, _0 or a name 0000."""
MAX_WILDCARDS: Final = 6
"""Most wildcards of a pattern in a card, because matching takes a power of their number."""


@dataclass(frozen=True)
class Split:
    """A split of a config, with its files in order."""

    config: str
    name: str
    files: tuple[str, ...]
    is_declared: bool = False
    """The card names these files."""
    is_default: bool = False
    """The card names its config as the default one."""


def choose_split(splits: Sequence[Split], config: str | None, split: str | None, shown: str) -> Split:
    """Return the split that a URI chooses; without a choice, `train` of the only or default config.

    Raises TrainingError (DatasetInvalid) with the list of existing ones.
    """
    of_config = _of_config(splits, config, shown)
    if split is not None:
        named = [found for found in of_config if found.name == split]
        if not named:
            raise invalid(f"{shown} has no split {split}; it has {_names(of_config)}")
    else:
        named = (
            [found for found in of_config if found.name == "train"]
            or [found for found in of_config if TRAIN.search(found.name)]
            or list(of_config)
        )
        if len({found.name for found in named}) > 1:
            raise invalid(
                f"{shown} has several splits and none of the name train: {_names(named)}; choose one with ?split=NAME"
            )
    if len(named) > 1:
        names = listed(sorted(found.config for found in named))
        raise invalid(f"{shown} has split {named[0].name} in several configs: {names}; choose one with ?config=NAME")
    return _readable(named[0], shown)


def _of_config(splits: Sequence[Split], config: str | None, shown: str) -> Sequence[Split]:
    if config is None:
        default = [split for split in splits if split.is_default]
        return default or splits
    chosen = [split for split in splits if split.config == config]
    if not chosen:
        raise invalid(f"{shown} has no config {config}; it has {listed(sorted({split.config for split in splits}))}")
    return chosen


def _names(splits: Sequence[Split]) -> str:
    configs = {split.config for split in splits}
    return listed(sorted(split.name if len(configs) == 1 else f"{split.name} in {split.config}" for split in splits))


def _readable(split: Split, shown: str) -> Split:
    """Refuse a split whose files are no rows, or are the same rows in several forms."""
    if other := [file for file in split.files if not is_data(file)]:
        raise invalid(f"{shown} split {split.name} has {listed(other)}; expected {', '.join(SUFFIXES)}")
    names = [PurePosixPath(file).name for file in split.files]
    forms = {(_suffixes(name), SHARD.search(name) is not None) for name in names}
    if len(forms) > 1 and not split.is_declared:
        raise invalid(
            f"{shown} split {split.name} has files of several forms, {listed(split.files)}; keep one of them, or name its "
            "files in the configs of README.md"
        )
    return split


def is_data(file: str) -> bool:
    """Return whether a file of a repository can hold rows, by its name."""
    name = PurePosixPath(file).name
    return _suffixes(name) != "" and name not in NO_ROWS


def _suffixes(name: str) -> str:
    """Return the suffix of a file of rows, with that of its compression; empty for other files."""
    path = PurePosixPath(name.lower())
    packed = path.suffix if path.suffix in COMPRESSIONS else ""
    suffix = PurePosixPath(path.stem).suffix if packed else path.suffix
    return suffix + packed if suffix in SUFFIXES else ""


# --- By the names of files


def splits_of_files(files: Sequence[str], config: str = "") -> list[Split]:
    """Return the splits that the names of files stand for; with `config`, all of them belong to it."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(file for file in files if is_data(file)):
        found.setdefault(_place(file), []).append(file)
    return [Split(config or place, name, tuple(named)) for (place, name), named in found.items()]


def _place(file: str) -> tuple[str, str]:
    """Return the config and the split that a path stands for."""
    path = PurePosixPath(file)
    folders = [folder for folder in path.parts[:-1] if folder != DATA_FOLDER]
    stem = SHARD.sub("", path.name)
    stem = stem[: len(stem) - len(_suffixes(path.name))]
    is_split = [folder for folder in folders if SPLIT_FOLDER.fullmatch(folder.lower())]
    if is_split and not SPLIT_FOLDER.fullmatch(stem.lower()):
        return "/".join(folder for folder in folders if folder not in is_split) or DEFAULT_CONFIG, is_split[-1]
    folders = [folder for folder in folders if folder not in is_split]
    if not stem:  # only a number: the folder is the split
        stem = folders.pop() if folders else "train"
    return "/".join(folders) or DEFAULT_CONFIG, stem


# --- By the card


def splits_of_card(metadata: Mapping[str, Any], files: Sequence[str], shown: str) -> list[Split]:
    """Return the splits that a card's `configs` declare; empty if it declares none with files.

    Raises TrainingError (DatasetInvalid) for patterns without a file.
    """
    configs = metadata.get("configs")
    declared = [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
    declared = [config for config in declared if "data_files" in config or "data_dir" in config]
    names = [str(config.get("config_name", DEFAULT_CONFIG)) for config in declared]
    marked = [name for name, config in zip(names, declared, strict=True) if config.get("default") is True]
    default = marked[0] if marked else DEFAULT_CONFIG
    splits = []
    for name, config in zip(names, declared, strict=True):
        splits += [replace(split, is_default=name == default) for split in _of_declaration(name, config, files, shown)]
    return splits


def _of_declaration(name: str, config: Mapping[str, Any], files: Sequence[str], shown: str) -> list[Split]:
    folder = str(config.get("data_dir") or "").strip("/").removeprefix("./")
    inside = [file for file in files if not folder or file.startswith(f"{folder}/")]
    if "data_files" not in config:
        return splits_of_files(inside, name)
    splits = []
    for split, patterns in _declared_files(config["data_files"]):
        matching = sorted({file for pattern in patterns for file in _matching(folder, pattern, inside, shown)})
        if not matching:
            raise invalid(f"{shown} names the files {listed(patterns)} in README.md, of which it has none")
        splits.append(Split(name, split, tuple(matching), is_declared=True))
    return splits


def _declared_files(declared: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield splits and patterns of `data_files`: a pattern, a list of them, a map by split, or a list of {split, path}."""
    if isinstance(declared, dict):
        declared = [{"split": split, "path": paths} for split, paths in declared.items()]
    if not isinstance(declared, list):
        declared = [declared]
    if all(isinstance(item, dict) for item in declared):
        for item in declared:
            paths = item.get("path")
            yield (
                str(item.get("split", "train")),
                [str(path) for path in (paths if isinstance(paths, list) else [paths])],
            )
    else:
        yield "train", [str(item) for item in declared]


def _matching(folder: str, pattern: str, files: Sequence[str], shown: str) -> list[str]:
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    pattern = pattern.removeprefix("./")
    if sum(pattern.count(wildcard) for wildcard in "*?[") > MAX_WILDCARDS:
        raise invalid(f"{shown} has a pattern with more than {MAX_WILDCARDS} wildcards in README.md")
    whole = f"{folder}/{pattern}" if folder else pattern
    try:
        expression = re.compile(glob_translate(whole))
    except (ValueError, re.error):
        raise invalid(f"{shown} has a pattern in README.md that is none: {listed([pattern])}") from None
    return [file for file in files if expression.match(file)]
