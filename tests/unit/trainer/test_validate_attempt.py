"""The first container of an attempt: an Outcome whatever happens, and nothing that the trainer would have to do again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import ExitCode
from finetune_api.outcome import Outcome, Result
from finetune_api.reasons import Reason
from finetune_trainer import dataset
from finetune_trainer.__main__ import main
from finetune_trainer.config import SourceSettings
from finetune_trainer.dataset import read_examples
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.training_runs import FinishedRun, a_training_config, an_attempt, write_config

pytestmark = pytest.mark.model

ROWS = '{"prompt": "a", "completion": "b"}\n' * 3
END_SECONDS = 120.0
"""A process that ends by itself: torch takes its time to import on a busy machine."""


@pytest.fixture(autouse=True)
def _signal_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@dataclass
class Pod:
    """What the operator and the kubelet give a container, and take from it."""

    folder: Path

    def mount(self, model: Path, **changes: Any) -> None:
        write_config(a_training_config(model, self.folder / "out", **changes), self.folder / "config.json")

    @property
    def outcome(self) -> Outcome:
        return Outcome.model_validate_json((self.folder / "termination-log").read_text())


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    monkeypatch.setenv("FINETUNE_CONFIG_PATH", str(tmp_path / "config.json"))
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "termination-log"))
    return Pod(tmp_path)


def test_a_run_that_may_start_is_summed_up(pod: Pod, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod.mount(tiny_model, dataset={"inline": ROWS})
    assert main(["validate"]) == ExitCode.SUCCEEDED
    outcome = pod.outcome
    assert (outcome.result, outcome.reason) == (Result.SUCCEEDED, Reason.ACCEPTED)
    assert outcome.message.startswith("Training: 3 rows, ")
    assert "; memory about 1.0 GiB, disk about " in outcome.message
    assert "Warning: 2 of 3 training rows repeat an earlier row; remove them." in outcome.message
    assert "3 training rows, 0 evaluation rows" in capsys.readouterr().out


def test_what_is_wrong_is_said_once_and_all_of_it(pod: Pod, tiny_model: Path) -> None:
    pod.mount(tiny_model, dataset={"inline": "{"}, lora={"targetModules": ["query"]})
    assert main(["validate"]) == ExitCode.DATASET_INVALID
    outcome = pod.outcome
    assert (outcome.result, outcome.reason, outcome.retryable) == (Result.FAILED, Reason.DATASET_INVALID, False)
    assert outcome.message.startswith("Dataset line 1 is not JSON")
    assert "Also TargetModulesNotFound: method.lora.targetModules names query" in outcome.message


def test_what_may_pass_gives_way_to_what_will_not(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry could reach the object store, and would find no model then either."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("FINETUNE_ALLOW_PRIVATE_SOURCES", "true")
    pod.mount(Path("/nowhere"), dataset={"path": "s3://rows/train.jsonl"})
    assert main(["validate"]) == ExitCode.MODEL_INVALID
    assert (pod.outcome.reason, pod.outcome.retryable) == (Reason.MODEL_NOT_FOUND, False)
    assert ". Also DatasetNotFound: dataset s3://rows/train.jsonl cannot be downloaded" in pod.outcome.message


def test_a_configuration_that_is_none_is_reported_too(pod: Pod) -> None:
    (pod.folder / "config.json").write_text("{}")
    assert main(["validate"]) == ExitCode.CONFIG_INVALID
    assert pod.outcome.reason is Reason.SPEC_INVALID


def test_a_gpu_that_is_too_small_is_named_and_one_of_unknown_size_is_left_to_the_trainer(
    pod: Pod, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.mount(tiny_model)
    monkeypatch.setenv("FINETUNE_GPU_MEMORY", "1024")
    assert main(["validate"]) == ExitCode.BUG
    assert (pod.outcome.reason, pod.outcome.retryable) == (Reason.WONT_FIT_GPU, False)
    monkeypatch.setenv("FINETUNE_GPU_MEMORY", "0")
    assert main(["validate"]) == ExitCode.SUCCEEDED


def test_an_attempt_that_was_overtaken_writes_nothing(pod: Pod, tiny_model: Path) -> None:
    pod.mount(tiny_model)
    fence = pod.folder / "out/.jobs/uid-1/attempt"
    fence.parent.mkdir(parents=True)
    fence.write_text("2\n")
    assert main(["validate"]) == ExitCode.FENCED
    assert (pod.outcome.result, pod.outcome.reason) == (Result.INTERRUPTED, Reason.FENCED)
    assert [path for path in (pod.folder / "out").rglob("*") if path.is_file()] == [fence]


def test_an_adapter_that_is_committed_needs_no_dataset_any_more(pod: Pod, finished: FinishedRun) -> None:
    shutil.copytree(finished.config.output.directory, pod.folder / "out")
    pod.mount(Path("/nowhere"), dataset={"path": "/nowhere/rows.jsonl"}, job=an_attempt(2))
    assert main(["validate"]) == ExitCode.SUCCEEDED
    assert pod.outcome.message == "The adapter of an earlier attempt is committed already."


def test_the_trainer_takes_the_tokens_from_the_cache(
    pod: Pod, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset.data, "MIN_CHARACTERS", 1)
    pod.mount(tiny_model)
    assert main(["validate"]) == ExitCode.SUCCEEDED
    assert len(list((pod.folder / "out/.cache/tokens").iterdir())) == 1
    pipeline = FinetuningPipeline(a_training_config(tiny_model, pod.folder / "out"))
    pipeline.tokenize(pipeline.read_examples(), pipeline.load_base_model())
    assert capsys.readouterr().err.count("tokens come from the cache") == 1


def test_rows_are_downloaded_once_for_both_containers(
    pod: Pod, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.getsockname()[1]}")
        monkeypatch.setenv("FINETUNE_ALLOW_PRIVATE_SOURCES", "true")
        monkeypatch.setenv("FINETUNE_DOWNLOADS", str(pod.folder / "downloads"))
        pod.mount(tiny_model, dataset={"path": "s3://rows/train.jsonl"})
        validate = start(pod)
        serve_once(store, ROWS.encode())
        assert validate.wait(END_SECONDS) == ExitCode.SUCCEEDED
    # The store is gone, and was asked once.
    config = a_training_config(tiny_model, pod.folder / "out", dataset={"path": "s3://rows/train.jsonl"})
    examples = read_examples(config, SourceSettings())
    assert len(examples.training) == 3
    assert not any(path.is_file() for path in (pod.folder / "downloads").rglob("*"))


def test_sigterm_ends_it_at_once_whatever_it_waits_for(
    pod: Pod, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.getsockname()[1]}")
        monkeypatch.setenv("FINETUNE_ALLOW_PRIVATE_SOURCES", "true")
        pod.mount(tiny_model, dataset={"path": "s3://rows/train.jsonl"})
        validate = start(pod)
        connection, _ = store.accept()
        with connection:
            validate.terminate()
            started = time.monotonic()
            assert validate.wait(END_SECONDS) == ExitCode.INTERRUPTED
            assert time.monotonic() - started < 15, "the store that says nothing is given up after 30 s"
    assert (pod.outcome.result, pod.outcome.retryable) == (Result.INTERRUPTED, True)


def test_a_mistake_is_named_without_celery_and_without_a_model_without_torch(pod: Pod, tiny_model: Path) -> None:
    """They take seconds to import and have no say in it; peft builds the adapter on the model, if there is one."""
    loaded = (
        "import sys; from finetune_trainer.__main__ import main; code = main(['validate']); "
        "print([name for name in ('celery', 'peft', 'torch') if name in sys.modules])"
    )
    for model, expected in ((tiny_model, ["peft", "torch"]), (Path("/nowhere"), [])):
        pod.mount(model, dataset={"inline": "{"})
        ran = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
        assert json.loads(ran.stdout.splitlines()[-1].replace("'", '"')) == expected
        assert pod.outcome.reason is Reason.DATASET_INVALID


def start(pod: Pod) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "finetune_trainer", "validate"], env=os.environ, cwd=pod.folder)


def serve_once(listener: socket.socket, body: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
