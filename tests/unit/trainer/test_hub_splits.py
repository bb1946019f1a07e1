"""Which rows of a hub dataset are read: by its card, by the names of its files, by what the URI chooses."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.reasons import Reason
from finetune_trainer.config import SourceSettings
from finetune_trainer.dataset import read_examples
from finetune_trainer.errors import TrainingError
from finetune_trainer.sources.hub import find_splits
from finetune_trainer.sources.splits import choose_split
from lab.fixtures.training_runs import a_training_config
from support.hub.dataset_hub import Hub


def row(text: str) -> bytes:
    return b'{"prompt": "%b", "completion": "b"}\n' % text.encode()


def chosen(card: dict[str, object], files: list[str], config: str | None = None, split: str | None = None) -> list[str]:
    return list(choose_split(find_splits(card, files, "dataset"), config, split, "dataset").files)


# --- By the names of files

LAYOUTS = [
    (["README.md", "rows.csv", "dataset_infos.json"], "", ["rows.csv"]),
    (["train.jsonl.gz", "validation.jsonl.gz"], "", ["train.jsonl.gz"]),
    (["train.jsonl.gz", "validation.jsonl.gz"], "split=validation", ["validation.jsonl.gz"]),
    (["data/train-1.parquet", "data/train-0.parquet"], "", ["data/train-0.parquet", "data/train-1.parquet"]),
    (
        ["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"],
        "",
        ["data/train_sft-00000-of-00001.parquet"],
    ),
    (["data/train_sft-0.parquet", "data/train_gen-0.parquet"], "split=train_gen", ["data/train_gen-0.parquet"]),
    (["en/train.csv", "de/train.csv", "de/test.csv"], "config=de", ["de/train.csv"]),
    (["en/train.csv", "de/train.csv", "de/test.csv"], "config=de&split=test", ["de/test.csv"]),
    (["en/train.csv", "de/train.csv", "de/test.csv"], "split=test", ["de/test.csv"]),
    (["data/en/train-0.parquet", "data/fr/train-0.parquet"], "config=fr", ["data/fr/train-0.parquet"]),
    (["train.jsonl", "train_small.jsonl"], "", ["train.jsonl"]),
    (["data/train/eval.jsonl", "data/train/train.jsonl"], "", ["data/train/train.jsonl"]),
    (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], "", ["train/a.jsonl", "train/b.jsonl"]),
    (["pre-train.jsonl", "train.jsonl"], "", ["train.jsonl"]),
    (["train.JSONL.GZ"], "", ["train.JSONL.GZ"]),
    (["train/0000.parquet", "train/0001.parquet"], "", ["train/0000.parquet", "train/0001.parquet"]),
    (["all/train_sft/0000.parquet", "all/test/0000.parquet"], "", ["all/train_sft/0000.parquet"]),
    (["train_1.v2.jsonl.gz", "train_2.v2.jsonl.gz"], "", ["train_1.v2.jsonl.gz", "train_2.v2.jsonl.gz"]),
    (
        ["train-00001-of-00002-a0b1c2d3e4f50617.parquet", "train-00000-of-00002-b0b1c2d3e4f50617.parquet"],
        "",
        ["train-00000-of-00002-b0b1c2d3e4f50617.parquet", "train-00001-of-00002-a0b1c2d3e4f50617.parquet"],
    ),
]


def _choice(query: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in query.split("&") if pair)


@pytest.mark.parametrize(("files", "query", "expected"), LAYOUTS)
def test_names_of_files_say_which_split_they_are(files: list[str], query: str, expected: list[str]) -> None:
    assert chosen({}, files, **_choice(query)) == expected


REFUSED = [
    (["README.md"], "", "has no data files .* among README.md"),
    (["a.csv", "b.csv"], "", "has several splits and none of the name train: a, b; choose one with .split=NAME"),
    (["train_sft-0.parquet", "train_gen-0.parquet"], "", "none of the name train: train_gen, train_sft"),
    (["en/train.csv", "de/train.csv"], "", "split train in several configs: de, en; choose one with .config=NAME"),
    (["train.csv", "test.csv"], "split=train_sft", "has no split train_sft; it has test, train"),
    (["en/train.csv", "de/test.csv"], "split=dev", "has no split dev; it has test in de, train in en"),
    (["en/train.csv", "de/train.csv"], "config=fr", "has no config fr; it has de, en"),
    (["train.csv", "train.jsonl"], "", "split train has files of several forms, train.csv, train.jsonl"),
    (["train.csv.gz", "train.jsonl.gz"], "", "split train has files of several forms"),
    (["train.jsonl", "train-2.jsonl"], "", "split train has files of several forms, train-2.jsonl, train.jsonl"),
    (["pre-train.jsonl", "fine-tune.jsonl"], "", "none of the name train: fine-tune, pre-train"),
]


@pytest.mark.parametrize(("files", "query", "message"), REFUSED)
def test_a_choice_that_is_wrong_or_missing_lists_what_exists(files: list[str], query: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        chosen({}, files, **_choice(query))
    assert caught.value.reason is Reason.DATASET_INVALID


# --- By the card

ULTRACHAT = {
    "configs": [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train_sft", "path": "data/train_sft-*"},
                {"split": "test_sft", "path": "data/test_sft-*"},
                {"split": "train_gen", "path": "data/train_gen-*"},
            ],
        }
    ]
}
ULTRACHAT_FILES = [
    *("data/train_sft-00000-of-00002.parquet", "data/train_sft-00001-of-00002.parquet"),
    *("data/test_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"),
]
CARDS = [
    (ULTRACHAT, ULTRACHAT_FILES, "split=train_sft", ULTRACHAT_FILES[:2]),
    (ULTRACHAT, ULTRACHAT_FILES, "split=test_sft&config=default", ULTRACHAT_FILES[2:3]),
    ({"configs": [{"data_files": "*.csv"}]}, ["b.csv", "a.csv", "x/c.csv"], "", ["a.csv", "b.csv"]),
    ({"configs": [{"data_files": "**/*.csv"}]}, ["b.csv", "x/y/c.csv"], "", ["b.csv", "x/y/c.csv"]),
    ({"configs": [{"data_files": ["./a.csv", "b.jsonl"]}]}, ["b.jsonl", "a.csv"], "", ["a.csv", "b.jsonl"]),
    ({"configs": [{"data_files": {"train": "a.csv", "test": ["b.csv"]}}]}, ["a.csv", "b.csv"], "split=test", ["b.csv"]),
    (
        {"configs": [{"config_name": "en", "data_dir": "english"}, {"config_name": "de", "data_dir": "/german/"}]},
        ["english/train.csv", "german/train.csv", "german/test.csv"],
        "config=de",
        ["german/train.csv"],
    ),
    (
        {
            "configs": [
                {"config_name": "en", "data_files": "en.csv"},
                {"config_name": "de", "data_files": "de.csv", "default": True},
            ]
        },
        ["en.csv", "de.csv"],
        "",
        ["de.csv"],
    ),
    (
        {"configs": [{"config_name": "c", "data_dir": "d", "data_files": "t*.csv"}]},
        ["d/t1.csv", "t2.csv"],
        "",
        ["d/t1.csv"],
    ),
    ({"configs": "nonsense", "license": "mit"}, ["train.csv"], "", ["train.csv"]),
]


@pytest.mark.parametrize(("card", "files", "query", "expected"), CARDS)
def test_a_card_has_the_last_word(card: dict[str, object], files: list[str], query: str, expected: list[str]) -> None:
    assert chosen(card, files, **_choice(query)) == expected


@pytest.mark.parametrize(
    ("card", "files", "query", "message"),
    [
        (ULTRACHAT, ULTRACHAT_FILES, "", "none of the name train: train_gen, train_sft"),
        (ULTRACHAT, ULTRACHAT_FILES, "split=train", "has no split train; it has test_sft, train_gen, train_sft"),
        ({"configs": [{"data_files": "none/*.csv"}]}, ["a.csv"], "", "names the files none/.*csv in README.md"),
        ({"configs": [{"data_files": "*.txt"}]}, ["a.txt"], "", "split train has a.txt; expected .jsonl"),
        ({"configs": [{"data_files": "*a*a*a*a*a*a*"}]}, ["a.csv"], "", "more than 6 wildcards"),
        ({"configs": [{"data_files": "a**b"}]}, ["a.csv"], "", "a pattern in README.md that is none"),
    ],
)
def test_a_card_that_does_not_answer_is_refused(
    card: dict[str, object], files: list[str], query: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        chosen(card, files, **_choice(query))


# --- From a hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    running = Hub()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield running
    running.close()


CARD = b"""---
license: mit
configs:
- config_name: chat
  data_files:
  - {split: train_sft, path: data/train_sft-*}
  - {split: test_sft, path: data/test_sft-*}
---
# Rows
"""
FILES = {
    "README.md": CARD,
    "data/train_sft-00000-of-00002.jsonl": row("a"),
    "data/train_sft-00001-of-00002.jsonl": row("b"),
    "data/test_sft-00000-of-00001.jsonl": row("c"),
}


def read(uri: str, evaluation: str | None = None) -> list[list[str]]:
    config = a_training_config(
        Path("/m"),
        Path("/out"),
        dataset={"path": uri, "source": uri},
        evaluation={"path": evaluation, "source": evaluation} if evaluation else None,
    )
    found = read_examples(config, SourceSettings())
    return [[str(example.prompt) for example in part] for part in (found.training, found.evaluation)]


def test_the_chosen_split_of_a_hub_is_downloaded_and_no_other(hub: Hub) -> None:
    hub.add("org/rows", FILES)
    assert read("hf://org/rows?split=train_sft") == [["a", "b"], []]
    assert hub.downloads == ["README.md", *list(FILES)[1:3]]


def test_training_and_held_out_rows_are_two_splits_of_one_repository(hub: Hub) -> None:
    hub.add("org/rows", FILES)
    assert read("hf://org/rows@v1?config=chat&split=train_sft", "hf://org/rows@v1?split=test_sft&config=chat") == [
        ["a", "b"],
        ["c"],
    ]


def test_a_split_that_nobody_named_is_logged(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.add("org/rows", FILES)
    with caplog.at_level(logging.INFO):
        read("hf://org/rows")
    assert "config=chat split=train_sft files=2 others=chat/test_sft" in caplog.text


def test_a_card_that_is_broken_is_reported_and_the_names_decide(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.add("org/rows", {"README.md": b"---\nconfigs: [\n---\n", "train.jsonl": row("a"), "test.jsonl": row("b")})
    assert read("hf://org/rows") == [["a"], []]
    assert "the card is not used" in caplog.text
