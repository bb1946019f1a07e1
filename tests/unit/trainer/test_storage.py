"""An output volume that takes nothing more: the run says so, leaves nothing torn, and goes on once it can.

The volume is a real one, a small tmpfs: what fails is what the kernel makes fail, in whatever library writes just then.
"""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifacts import MANIFEST_FILE, read_verified
from finetune_api.fingerprint import Fingerprint
from finetune_api.outcome import Outcome
from finetune_api.reasons import Reason
from finetune_trainer.dataset import read_examples
from finetune_trainer.errors import TrainingError
from finetune_trainer.reporting.progress import LogReporter, Reporter
from finetune_trainer.runtime.interruption import StopSignal
from finetune_trainer.tasks.finetuning_task import run_finetuning
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.reporters import AtStep
from lab.fixtures.training_runs import a_training_config, an_attempt

pytestmark = pytest.mark.model

KIB = 1024
VOLUME_KIB = 8 * KIB


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB and 400 inodes."""
    folder = tmp_path / "volume"
    folder.mkdir()
    options = f"size={VOLUME_KIB}k,nr_inodes=400"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run with all the space it needs."""
    output = tmp_path_factory.mktemp("undisturbed")
    run(tiny_model, output, 1)
    return weights(output)


def run(model: Path, output: Path, attempt: int, reporter: Reporter | None = None) -> Outcome:
    """An attempt whose dropout makes the state of the random numbers matter."""
    config = a_training_config(model, output, job=an_attempt(attempt), lora={"dropout": 0.2})
    return run_finetuning(config, reporter or LogReporter(), StopSignal())


def weights(output: Path) -> bytes:
    return (output / "support-tone/uid-1/adapter_model.safetensors").read_bytes()


def assert_nothing_is_torn(volume: Path) -> None:
    """Each folder with files has a manifest and verifies, and no staging is left."""
    files = [p for p in volume.rglob("*") if p.is_file() and p.name not in ("attempt", "ballast")]
    for folder in {p.parent for p in files}:
        assert (folder / MANIFEST_FILE).exists(), f"{folder} is half-written"
        read_verified(folder)


def leave_free(volume: Path, kib: int) -> None:
    """Fill the volume but for some space."""
    status = os.statvfs(volume)
    (volume / "ballast").write_bytes(bytes(status.f_bavail * status.f_frsize - kib * KIB))


def use_up_inodes(volume: Path, left: int) -> None:
    """Make empty files until only some more can be made."""
    (volume / "ballast").mkdir()
    for index in range(os.statvfs(volume).f_favail - left):
        (volume / "ballast" / str(index)).touch()


@pytest.mark.parametrize("kib", [0, 24, 60, 100, 140, 220, 380], ids=lambda kib: f"{kib} KiB are free")
def test_a_full_volume_is_named_and_costs_nothing_once_there_is_space(
    volume: Path, tiny_model: Path, undisturbed: bytes, kib: int
) -> None:
    """From no space for the fence to no space for the last checkpoint."""
    leave_free(volume, kib)
    first = run(tiny_model, volume, 1)
    assert (first.reason, first.retryable) == (Reason.STORAGE_FULL, True)
    assert "No space left on device" in first.message
    assert_nothing_is_torn(volume)

    (volume / "ballast").unlink()
    first_step = (first.checkpoint_step or 0) + 1
    second = run(tiny_model, volume, 2, AtStep(first_step - 1, lambda: pytest.fail("a saved step was done twice")))
    assert second.reason is Reason.TRAINED
    assert weights(volume) == undisturbed
    assert_nothing_is_torn(volume)


def test_a_full_scratch_volume_is_not_blamed_on_the_output(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = b"\n" * (2 * VOLUME_KIB * KIB)
    monkeypatch.setenv("FINETUNE_DOWNLOADS", str(volume))
    monkeypatch.setenv("FINETUNE_ALLOW_PRIVATE_SOURCES", "true")
    with socket.create_server(("127.0.0.1", 0)) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.getsockname()[1]}")
        threading.Thread(target=serve, args=(store, rows), daemon=True).start()
        config = a_training_config(tmp_path, tmp_path, dataset={"path": "s3://rows/train.jsonl"})
        with pytest.raises(TrainingError, match=r"is full with dataset s3://rows/train\.jsonl") as caught:
            read_examples(config)
    assert (caught.value.reason, caught.value.retryable) == (Reason.STORAGE_FULL, True)
    assert "output" not in caught.value.message


def serve(listener: socket.socket, body: bytes) -> None:
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):  # the other end gives up
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def test_an_output_below_a_file_is_a_mistake_of_the_spec_for_the_trainer_as_for_validate(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    outcome = run(tiny_model, tmp_path / "file/out", 1)
    assert (outcome.reason, outcome.retryable) == (Reason.SPEC_INVALID, False)
    assert f"{tmp_path}/file is a file, expected a folder" in outcome.message


@pytest.mark.parametrize("kib", [0, 12, 36, 52, 60], ids=lambda kib: f"{kib} KiB are free")
def test_a_volume_that_is_full_by_the_time_of_the_adapter_costs_no_step(
    volume: Path, tiny_model: Path, undisturbed: bytes, kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From no space for the weights to no space for the manifest."""
    take_fingerprint = FinetuningPipeline.take_fingerprint

    def fill_first(self: FinetuningPipeline, *arguments: Any) -> Fingerprint:
        leave_free(volume, kib)
        return take_fingerprint(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(FinetuningPipeline, "take_fingerprint", fill_first)
        first = run(tiny_model, volume, 1)
    assert (first.reason, first.retryable, first.checkpoint_step) == (Reason.STORAGE_FULL, True, 6)
    assert_nothing_is_torn(volume)

    (volume / "ballast").unlink()
    assert run(tiny_model, volume, 2, AtStep(6, lambda: pytest.fail("it trained again"))).reason is Reason.TRAINED
    assert weights(volume) == undisturbed
    assert_nothing_is_torn(volume)


@pytest.mark.parametrize("left", [1, 5, 9, 14, 24])
def test_a_volume_without_inodes_is_as_good_as_full(
    volume: Path, tiny_model: Path, undisturbed: bytes, left: int
) -> None:
    use_up_inodes(volume, left)
    assert run(tiny_model, volume, 1).reason is Reason.STORAGE_FULL
    subprocess.run(["rm", "-r", volume / "ballast"], check=True)
    assert_nothing_is_torn(volume)
    assert run(tiny_model, volume, 2).reason is Reason.TRAINED
    assert weights(volume) == undisturbed


def remount(volume: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", volume], check=True)


@pytest.mark.parametrize("step", [0, 3, 6], ids=lambda step: f"after step {step}")
def test_a_volume_that_turns_read_only_is_named_and_costs_nothing_once_it_is_writable(
    volume: Path, tiny_model: Path, undisturbed: bytes, step: int
) -> None:
    if step == 0:
        remount(volume, "ro")
    first = run(tiny_model, volume, 1, AtStep(step, lambda: remount(volume, "ro")))
    assert (first.reason, first.retryable) == (Reason.STORAGE_FULL, True)
    assert "read-only" in first.message.lower()

    remount(volume, "rw")
    second = run(tiny_model, volume, 2)
    assert second.reason is Reason.TRAINED
    assert weights(volume) == undisturbed
    assert_nothing_is_torn(volume)
    assert [p.name for p in (volume / ".jobs/uid-1").iterdir()] == ["attempt"]


def test_an_adapter_that_was_committed_is_reported_from_a_volume_that_is_read_only(
    volume: Path, tiny_model: Path
) -> None:
    first = run(tiny_model, volume, 1)
    remount(volume, "ro")
    try:
        second: Any = run(tiny_model, volume, 2)
    finally:
        remount(volume, "rw")
    assert second.reason is Reason.TRAINED
    assert second.adapter == first.adapter
