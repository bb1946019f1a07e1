"""Progress for a TrainJob, against a server that is as strict as Kubeflow's: TLS, token, path, and the types of the body."""

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.outcome import Outcome, Progress, Result
from finetune_api.reasons import Reason
from finetune_trainer.reporting.kubeflow import (
    CA_ENV,
    TOKEN_ENV,
    URL_ENV,
    KubeflowReporter,
    kubeflow_reporters,
    trainer_status,
)

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs/tone/status"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metric(_Body):
    """As `Metric` of trainjob_types.go."""

    name: str = Field(min_length=1, max_length=64)
    value: str = Field(min_length=1, max_length=64)


class TrainerStatus(_Body):
    """As `TrainerStatus` of trainjob_types.go."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    estimated_remaining_seconds: int | None = Field(default=None, ge=0, le=2**31 - 1)
    metrics: list[Metric] = Field(default=[], max_length=256)
    last_updated_time: AwareDatetime


class UpdateTrainJobStatusRequest(_Body):
    """The body of a report."""

    trainer_status: TrainerStatus


class StatusServer:
    """Kubeflow's status server, as far as one TrainJob is concerned."""

    def __init__(self, folder: Path) -> None:
        self.statuses: list[TrainerStatus] = []
        self.refused: list[str] = []
        self.redirect_to = ""
        self.token = "pod-token"
        self.ca_file = folder / "ca.crt"
        key = folder / "key.pem"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", str(key), "-out", str(self.ca_file)]
        request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
        subprocess.run(request, check=True, capture_output=True)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                code = owner.take(self.path, self.headers, self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(code)
                if code == 307:
                    self.send_header("Location", owner.redirect_to)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca_file, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"https://localhost:{self._server.server_port}{PATH}"

    def take(self, path: str, headers: Any, body: bytes) -> int:
        if self.redirect_to:
            return 307
        if path != PATH or headers["Authorization"] != f"Bearer {self.token}":
            self.refused.append(path)
            return 403
        self.statuses.append(UpdateTrainJobStatusRequest.model_validate_json(body).trainer_status)
        return 200

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StatusServer]:
    server = StatusServer(tmp_path)
    yield server
    server.stop()


def a_step(step: int, **changes: Any) -> Progress:
    fields: dict[str, Any] = {"total_steps": 10, "epoch": 0.5, "loss": 1.25, "learning_rate": 2e-4, "eta_seconds": 7.9}
    return Progress.model_validate({"step": step, "timestamp": 1_700_000_000.5, **fields, **changes})


SUCCESS = Outcome(
    result=Result.SUCCEEDED, reason=Reason.TRAINED, step=10, metrics={"train_loss": 0.5, "eval_loss": 0.75}
)


def test_a_train_job_hears_progress_and_at_last_that_all_is_done(
    server: StatusServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{server.token}\n")
    monkeypatch.setenv(URL_ENV, server.url)
    monkeypatch.setenv(CA_ENV, str(server.ca_file))
    monkeypatch.setenv(TOKEN_ENV, str(token))
    [reporter] = kubeflow_reporters()
    reporter.report(a_step(3, evaluation={"eval_loss": 1.5, "exact_match": 0.25}))
    wait_for(lambda: len(server.statuses) == 1)
    reporter.close(SUCCESS)
    during, end = server.statuses
    assert (during.progress_percentage, during.estimated_remaining_seconds) == (30, 7)
    metrics = {metric.name: metric.value for metric in during.metrics}
    assert metrics["loss"] == "1.25"
    assert metrics["learning_rate"] == "0.0002"
    assert (metrics["eval_loss"], metrics["exact_match"]) == ("1.5", "0.25")
    assert (metrics["current_step"], metrics["total_steps"], metrics["current_epoch"]) == ("3", "10", "0.5")
    assert (end.progress_percentage, end.estimated_remaining_seconds) == (100, 0)
    assert {metric.name: metric.value for metric in end.metrics}["eval_loss"] == "0.75"
    assert not server.refused


def test_hundred_percent_is_said_only_of_a_committed_adapter(server: StatusServer, tmp_path: Path) -> None:
    assert trainer_status(a_step(10))["progressPercentage"] == 99
    reporter = reporter_to(server, tmp_path)
    reporter.close(Outcome(result=Result.FAILED, reason=Reason.LOSS_DIVERGED))
    assert not server.statuses


def test_a_renewed_token_is_read_again(server: StatusServer, tmp_path: Path) -> None:
    reporter = reporter_to(server, tmp_path)
    reporter.report(a_step(1))
    wait_for(lambda: len(server.statuses) == 1)
    server.token = "renewed"
    (tmp_path / "token").write_text("renewed")
    reporter.close(SUCCESS)
    assert server.statuses[-1].progress_percentage == 100


def test_a_server_that_refuses_redirects_or_is_not_the_one_of_the_certificate_costs_progress_only(
    server: StatusServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.redirect_to = server.url.replace("localhost", "127.0.0.1")
    reporter_to(server, tmp_path).close(SUCCESS)
    server.redirect_to = ""
    reporter_to(server, tmp_path, token="another").close(SUCCESS)
    reporter_to(server, tmp_path, url=server.url.replace("localhost", "127.0.0.1")).close(SUCCESS)
    messages = [
        record.message.removeprefix("progress of the TrainJob cannot be reported: ") for record in caplog.records
    ]
    assert [message[:18] for message in messages] == ["HTTPError: HTTP Er", "HTTPError: HTTP Er", "URLError: <urlopen"]
    assert not server.statuses
    assert "another" not in caplog.text


def test_without_a_train_job_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_ENV, raising=False)
    assert kubeflow_reporters() == []
    monkeypatch.setenv(URL_ENV, "https://localhost:1/")
    monkeypatch.setenv("DISABLE_KUBEFLOW_INTEGRATION", "TRUE")
    assert kubeflow_reporters() == []


def reporter_to(server: StatusServer, folder: Path, *, url: str = "", token: str = "") -> KubeflowReporter:
    file = folder / "token"
    file.write_text(token or server.token)
    return KubeflowReporter(url or server.url, token_file=str(file), ca_file=str(server.ca_file), interval=0)


def wait_for(condition: Any) -> None:
    """For what the reporter's thread does: ten seconds are far more than it needs."""
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("not reached in 10 s")
