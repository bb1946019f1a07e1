"""A dataset is tokenized once, and a cache that cannot be trusted or written changes nothing but time."""

import errno
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_trainer import dataset
from finetune_trainer.data.cache import KEPT_FILES, TokenCache
from finetune_trainer.dataset import PreparedDataset, prepare_dataset, read_examples
from finetune_trainer.errors import TrainingError
from lab.fixtures.tiny_model import as_jsonl, make_tiny_tokenizer
from lab.fixtures.training_runs import a_training_config

pytestmark = pytest.mark.model


class AModelConfig:
    max_position_embeddings = 512

    def get_text_config(self) -> "AModelConfig":
        return self


ROWS = [{"prompt": f"Question {n}?", "completion": "Answer " + "so " * n} for n in range(40)]


@pytest.fixture(autouse=True)
def _every_dataset_is_worth_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset.data, "MIN_CHARACTERS", 1)


def prepare(
    cache: TokenCache | None, tokenizer: Any, rows: list[dict[str, str]] = ROWS, **changes: Any
) -> PreparedDataset:
    config = a_training_config(
        Path("/m"),
        Path("/out"),
        dataset={"inline": as_jsonl(rows), "evaluationFraction": 0.2},
        hyperparameters={"maxLength": 64, **changes},
    )
    return prepare_dataset(config, read_examples(config), tokenizer, AModelConfig(), cache=cache)


def content(prepared: PreparedDataset) -> list[tuple[list[int], list[int]]]:
    assert prepared.evaluation is not None
    rows = [*prepared.training.rows, *prepared.evaluation.rows]
    return [(list(row.input_ids), list(row.labels)) for row in rows]


def test_the_second_time_tokens_come_from_the_cache_and_are_the_same(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TokenCache(tmp_path / "tokens")
    first = prepare(cache, tokenizer)
    assert len(list((tmp_path / "tokens").iterdir())) == 2
    with caplog.at_level("INFO", logger="finetune_trainer"):
        second = prepare(cache, tokenizer)
    assert caplog.text.count("tokens come from the cache") == 2
    assert content(second) == content(first) == content(prepare(None, tokenizer))
    assert second.report == first.report
    assert second.report.training.truncated.rows > 0


@pytest.mark.parametrize(
    "change", [{"maxLength": 63}, {"lossOn": "all"}, {"seed": 1}, {"rows": ROWS[1:]}, {"template": "{# a comment #}"}]
)
def test_whatever_changes_the_tokens_changes_the_key(tmp_path: Path, tokenizer: Any, change: dict[str, Any]) -> None:
    cache = TokenCache(tmp_path)
    prepare(cache, tokenizer)
    other = make_tiny_tokenizer()
    if template := change.pop("template", None):
        other.chat_template += template
    prepare(cache, other, **change)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_file_is_not_believed(tmp_path: Path, tokenizer: Any, damage: bytes | None) -> None:
    cache = TokenCache(tmp_path)
    expected = content(prepare(cache, tokenizer))
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + b"\1\1\1" if damage is None else damage)
    assert content(prepare(cache, tokenizer)) == expected
    assert content(prepare(cache, tokenizer)) == expected


def test_a_volume_that_cannot_be_written_stops_nothing(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = TokenCache(tmp_path / "file" / "tokens")
    assert content(prepare(cache, tokenizer)) == content(prepare(None, tokenizer))


def test_a_volume_that_cannot_be_read_stops_nothing(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_file(_path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    cache = TokenCache(tmp_path)
    expected = content(prepare(cache, tokenizer))
    monkeypatch.setattr(Path, "is_file", is_file)
    assert cache.load("0" * 32) is None
    assert content(prepare(cache, tokenizer)) == expected


def test_rows_that_change_while_they_are_read_are_not_kept_under_the_digest_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "old"}')
    config = a_training_config(Path("/m"), Path("/out"), dataset={"path": str(path)})
    parse = dataset.data.read_examples

    def replaced_later(*arguments: Any, **more: Any) -> Any:
        found = parse(*arguments, **more)
        path.write_text('{"text": "new"}')
        return found

    monkeypatch.setattr(dataset.data, "read_examples", replaced_later)
    with pytest.raises(TrainingError, match="changed while it was read") as caught:
        read_examples(config)
    assert (caught.value.reason, caught.value.retryable) == (Reason.DATASET_INVALID, True)
    assert len(read_examples(config).training) == 1


def test_the_newest_files_stay(tmp_path: Path, tokenizer: Any) -> None:
    cache = TokenCache(tmp_path)
    for seed in range(5):
        prepare(cache, tokenizer, seed=seed)
    assert len(list(tmp_path.iterdir())) == KEPT_FILES


def test_a_small_dataset_is_not_worth_a_file(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    prepare(TokenCache(tmp_path), tokenizer)
    assert list(tmp_path.iterdir()) == []
