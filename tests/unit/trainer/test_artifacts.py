"""The commit protocol: a folder on the volume is whole or not there, and only the newest attempt writes."""

import errno
from pathlib import Path

import pytest

from finetune_api.artifacts import Manifest, read_verified
from finetune_api.contract import ExitCode
from finetune_api.reasons import Reason
from finetune_trainer.errors import TrainingError, as_training_error
from finetune_trainer.store.run_store import RunStore


def a_store(output: Path, attempt: int = 1, run_id: str = "uid-1") -> RunStore:
    store = RunStore(output, "support-tone", run_id, attempt)
    store.open()
    return store


def a_manifest(step: int = 6) -> Manifest:
    return Manifest(kind="adapter", step=step, files=[])


def stage(folder: Path, content: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(content)
    return folder


def commit_checkpoint(store: RunStore, step: int) -> Path:
    staged = stage(store.checkpoint_staging / f"checkpoint-{step}", f"step {step}")
    return store.commit_checkpoint(staged, a_manifest(step)).path


def test_a_committed_adapter_verifies_and_its_staging_is_gone(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    stage(store.adapter_staging)
    committed = store.commit_adapter(a_manifest())
    assert committed.path == tmp_path / "support-tone" / "uid-1"
    assert read_verified(committed.path) == (committed.manifest, committed.digest)
    assert not store.adapter_staging.exists()


def test_an_older_attempt_is_fenced_off_before_it_starts(tmp_path: Path) -> None:
    a_store(tmp_path, attempt=2)
    with pytest.raises(TrainingError) as caught:
        a_store(tmp_path, attempt=1)
    assert caught.value.reason is Reason.FENCED
    assert caught.value.exit_code is ExitCode.FENCED


def test_an_older_attempt_cannot_commit_once_a_newer_one_has_started(tmp_path: Path) -> None:
    older = a_store(tmp_path, attempt=1)
    a_store(tmp_path, attempt=2)
    stage(older.adapter_staging)
    with pytest.raises(TrainingError, match="attempt 2 of the same job has started"):
        older.commit_adapter(a_manifest())
    assert older.committed_adapter() is None
    staged = stage(older.checkpoint_staging / "checkpoint-2")
    with pytest.raises(TrainingError, match="attempt 2 of the same job has started"):
        older.commit_checkpoint(staged, a_manifest(2))
    assert older.checkpoint_steps() == []


def test_an_attempt_that_was_overtaken_writes_nothing_at_all(tmp_path: Path) -> None:
    older = a_store(tmp_path, attempt=1)
    a_store(tmp_path, attempt=2)
    before = sorted(tmp_path.rglob("*"))
    for stage_it in (older.stage_adapter, lambda: older.stage_checkpoint(2)):
        with pytest.raises(TrainingError, match="attempt 2 of the same job has started"):
            stage_it()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["adapter", "checkpoint"])
def test_an_attempt_that_sleeps_right_before_its_rename_is_fenced_off_too(tmp_path: Path, kind: str) -> None:
    """It has looked at the fence and found nobody; when it wakes up, a newer attempt has swept its staging."""
    older = a_store(tmp_path, attempt=1)
    staged = older.stage_adapter() if kind == "adapter" else older.stage_checkpoint(2)
    (staged / "adapter_model.safetensors").write_text("weights")
    check, looks = older.fence.check, []

    def look_and_fall_asleep() -> None:
        check()
        if not looks:
            looks.append(a_store(tmp_path, attempt=2))

    older.fence.check = look_and_fall_asleep  # type: ignore[method-assign]
    with pytest.raises(TrainingError) as caught:
        if kind == "adapter":
            older.commit_adapter(a_manifest())
        else:
            older.commit_checkpoint(staged, a_manifest(2))
    assert caught.value.reason is Reason.FENCED
    assert looks[0].committed_adapter() is None
    assert looks[0].newest_checkpoint() is None
    assert [p for p in tmp_path.rglob("*") if p.name != "attempt" and p.is_file()] == []


def test_an_attempt_whose_staging_was_swept_while_it_wrote_is_fenced_off_too(tmp_path: Path) -> None:
    older = a_store(tmp_path, attempt=1)
    staged = older.stage_checkpoint(2)
    a_store(tmp_path, attempt=2)
    with pytest.raises(TrainingError, match="attempt 2 of the same job has started"), older.writing():
        (staged / "optimizer.pt").write_text("weights")
    with pytest.raises(TrainingError, match="attempt 2 of the same job has started"):
        older.commit_checkpoint(staged, a_manifest(2))


def test_what_a_full_disk_left_of_one_attempts_number_never_shuts_out_the_next(tmp_path: Path) -> None:
    fence = tmp_path / ".jobs/uid-1/attempt"
    a_store(tmp_path, attempt=11)
    fence.write_text(fence.read_text().rstrip().removesuffix("1"))
    a_store(tmp_path, attempt=12)
    a_store(tmp_path, attempt=13)


def test_jobs_do_not_fence_each_other(tmp_path: Path) -> None:
    a_store(tmp_path, attempt=5, run_id="uid-1")
    a_store(tmp_path, attempt=1, run_id="uid-2")


def test_a_whole_adapter_is_never_replaced(tmp_path: Path) -> None:
    first = a_store(tmp_path, attempt=1)
    stage(first.adapter_staging, "first")
    original = first.commit_adapter(a_manifest())
    second = a_store(tmp_path, attempt=2)
    stage(second.adapter_staging, "second")
    assert second.commit_adapter(a_manifest()).digest == original.digest
    assert (original.path / "adapter_model.safetensors").read_text() == "first"
    assert not second.adapter_staging.exists()


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "no manifest"])
def test_a_torn_adapter_does_not_count_and_is_replaced(tmp_path: Path, damage: str) -> None:
    store = a_store(tmp_path)
    stage(store.adapter_staging)
    path = store.commit_adapter(a_manifest()).path
    weights = path / "adapter_model.safetensors"
    match damage:
        case "truncated":
            weights.write_text("wei")
        case "altered":
            weights.write_text("WEIGHTS")
        case "missing":
            weights.unlink()
        case _:
            (path / "manifest.json").unlink()
    assert store.committed_adapter() is None
    stage(store.adapter_staging)
    store.commit_adapter(a_manifest())
    assert store.committed_adapter() is not None
    assert [p.name for p in path.parent.iterdir()] == ["uid-1"]


def test_the_newest_whole_checkpoint_is_found_behind_torn_ones(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (2, 4, 10):
        commit_checkpoint(store, step)
    (tmp_path / ".jobs/uid-1/checkpoints/step-10/adapter_model.safetensors").write_text("torn")
    newest = store.newest_checkpoint()
    assert newest is not None
    assert newest.manifest.step == 4


def test_a_torn_checkpoint_never_takes_the_place_of_a_whole_one_that_is_kept(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    commit_checkpoint(store, 10)
    (tmp_path / ".jobs/uid-1/checkpoints/step-10/adapter_model.safetensors").write_text("torn")
    assert store.newest_checkpoint() is None
    commit_checkpoint(store, 2)
    store.prune_checkpoints(keep=1)
    assert store.checkpoint_steps() == [2]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (2, 4, 10):
        commit_checkpoint(store, step)
    store.prune_checkpoints(keep=2)
    assert store.checkpoint_steps() == [4, 10]


def test_a_new_attempt_sweeps_what_older_ones_left_half_written(tmp_path: Path) -> None:
    older = a_store(tmp_path, attempt=1)
    stage(older.adapter_staging)
    stage(older.checkpoint_staging / "checkpoint-2")
    other = a_store(tmp_path, attempt=1, run_id="uid-2")
    stage(other.adapter_staging)
    a_store(tmp_path, attempt=2)
    assert not older.adapter_staging.exists()
    assert not older.checkpoint_staging.exists()
    assert other.adapter_staging.exists()


def test_committed_files_can_be_read_by_other_users(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    (stage(store.adapter_staging) / "adapter_model.safetensors").chmod(0o600)
    path = store.commit_adapter(a_manifest()).path / "adapter_model.safetensors"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("error", "reason", "exit_code", "retryable"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Reason.STORAGE_FULL, ExitCode.STORAGE_FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Reason.STORAGE_FULL, ExitCode.STORAGE_FULL, True),
        (OSError(errno.EROFS, "Read-only file system"), Reason.STORAGE_FULL, ExitCode.STORAGE_FULL, True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), Reason.STORAGE_FULL, 28, True),
        (MemoryError(), Reason.HOST_OUT_OF_MEMORY, ExitCode.BUG, False),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), Reason.CUDA_OUT_OF_MEMORY, ExitCode.BUG, False),
        (ZeroDivisionError("x"), Reason.TRAINER_CRASHED, ExitCode.BUG, True),
    ],
)
def test_what_libraries_raise_becomes_a_reason(
    error: Exception, reason: Reason, exit_code: int, retryable: bool
) -> None:
    translated = as_training_error(error)
    assert (translated.reason, translated.exit_code, translated.retryable) == (reason, exit_code, retryable)
