"""The log says what was asked and answered, and nothing that somebody could misuse."""

import json
import logging

import httpx
import pytest

from finetune_api.json_logs import JsonFormatter
from support.gateway.running_gateway import api_server_stand_in, running_gateway

CANARY = "canary.token-123"


def test_a_request_is_one_line_without_secrets_and_a_probe_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        api_server_stand_in() as stand_in,
        running_gateway(stand_in.url) as client,
    ):
        client.get("/readyz")
        client.get("/healthz")
        client.get("/llm/finetune/a", params={"namespace": "ml"}, headers={"Authorization": f"Bearer {CANARY}"})
        client.post("/llm/finetune", content=CANARY, headers={"Authorization": f"Bearer {CANARY}"})
    # The caller's own httpx lives in this process, too.
    lines = [r for r in caplog.records if r.name.startswith(("finetune_gateway", "uvicorn"))]
    requests = [json.loads(JsonFormatter().format(r)) for r in lines if r.name == "finetune_gateway.access"]
    assert [(r["method"], r["path"], r["status"]) for r in requests] == [
        ("GET", "/llm/finetune/a", 404),
        ("POST", "/llm/finetune", 422),
    ]
    assert all(r["milliseconds"] >= 0 for r in requests)
    assert all(CANARY not in JsonFormatter().format(r) for r in lines)


def test_an_exception_is_one_line_too(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_gateway.translate.task_from", lambda _: 1 / 0)
    with (
        caplog.at_level(logging.INFO),
        api_server_stand_in() as stand_in,
        running_gateway(stand_in.url) as client,
    ):
        body = {"model": {"source": "pvc://m/m"}, "dataset": {"inline": "{}"}}
        response = post(client, body)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "Bug"
    assert "division" not in response.text
    assert [r.status for r in caplog.records if r.name == "finetune_gateway.access"] == [500]
    (bug,) = [r for r in caplog.records if r.exc_info]
    line = JsonFormatter().format(bug)
    assert "\n" not in line
    assert "ZeroDivisionError" in json.loads(line)["exception"]


def post(client: httpx.Client, body: dict[str, object]) -> httpx.Response:
    return client.post("/llm/finetune", json=body, headers={"Authorization": f"Bearer {CANARY}"})
