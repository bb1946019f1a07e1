"""The server around an engine whose every step the test allows: probes, full queue, clients that leave, failures."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import openai
import pytest
from fastapi import Body, FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.serving import ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.engine.interface import ModelLoadError
from finetune_inference.inference import InferenceService, NotReadyError
from support.server.engine_under_test import ENGINE
from support.server.running_inference import Running, running
from support.server.stepped_engine import SECONDS, SteppedEngine

pytestmark = pytest.mark.model

PROMPT: dict[str, Any] = {"model": "base", "prompt": [5, 6], "max_tokens": 100}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


@contextmanager
def stepped(models: Path, *, wait: bool = True, **limits: Any) -> Iterator[tuple[Running, SteppedEngine, httpx.Client]]:
    engine = SteppedEngine()
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")))
    service = InferenceService(config, Settings(**limits), make_engine=lambda *_: engine)
    if wait:
        engine.allow(1)
    with running(service, wait=wait) as server, httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        try:
            yield server, engine, client
        finally:
            engine.allow(200)


def test_an_answer_that_takes_too_long_is_given_up(models: Path) -> None:
    with stepped(models, request_timeout_seconds=0.05) as (server, engine, client):
        late = threading.Timer(0.1, engine.allow, [2])
        late.start()
        answer = client.post("/v1/completions", json=PROMPT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
        wait_until(lambda: server.service.running == 0)
        late.join()


def test_probes_answer_while_the_model_loads_and_ready_means_a_token_was_made(models: Path) -> None:
    with stepped(models, wait=False) as (server, engine, client):
        wait_until(lambda: bool(engine.added))
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.get("/readyz").json()["status"] == "loading"
        early = client.post("/v1/completions", json=PROMPT)
        assert (early.status_code, early.json()["error"]["code"]) == (503, "model_not_ready")
        assert early.headers["retry-after"]
        assert client.get("/v1/models").status_code == 503
        engine.allow(1)
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json() == {"status": "ready", "refusedAdapters": {}}
        server.service.draining = True
        assert client.get("/readyz").json()["status"] == "draining"
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models").status_code == 200


def test_a_dead_engine_fails_both_probes_with_its_reason(models: Path) -> None:
    with stepped(models) as (_, engine, client):
        for _ in range(3):
            engine.steps.put(RuntimeError("the device fell off the bus"))
            answer = client.post("/v1/completions", json=PROMPT)
            assert answer.status_code == 500
            assert "bus" not in answer.text
        wait_until(lambda: client.get("/healthz").status_code == 503)
        assert client.get("/healthz").json() == {"status": "failed", "reason": "the device fell off the bus"}
        assert client.get("/readyz").json()["status"] == "failed"
        assert client.post("/v1/completions", json=PROMPT).status_code == 503


def test_a_failure_in_a_stream_is_its_last_event(models: Path) -> None:
    with stepped(models) as (_, engine, client):
        engine.allow(2)
        engine.steps.put(RuntimeError("out of memory"))
        lines = client.post("/v1/completions", json=PROMPT | {"stream": True}).text.split("\n\n")
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["type"] == "server_error"
        assert "[DONE]" not in lines[-1]


def test_a_full_queue_is_429_with_the_time_to_come_back(models: Path) -> None:
    with stepped(models, max_waiting=1) as (server, engine, client):
        threads = [
            threading.Thread(target=lambda: httpx.post(f"{server.url}/v1/completions", json=PROMPT, timeout=SECONDS))
            for _ in range(2)
        ]
        threads[0].start()
        wait_until(lambda: server.service.running == 1)
        threads[1].start()
        wait_until(lambda: server.service.waiting == 1)
        for stream in (False, True):
            answer = client.post("/v1/completions", json=PROMPT | {"stream": stream})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
        unread = client.post("/v1/completions", json=PROMPT | {"model": "nobody"})
        assert unread.status_code == 429, "what is turned away costs no look at what it asks for"
        with pytest.raises(openai.RateLimitError):
            server.openai.completions.create(**PROMPT)
        engine.allow(200)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_work(models: Path, path: str, stream: bool) -> None:
    body: dict[str, Any] = {"model": "base", "max_tokens": 400, "stream": stream}
    body |= {"prompt": [5]} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}
    with stepped(models) as (server, engine, client):

        def leave_early() -> None:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + path, json=body, timeout=httpx.Timeout(SECONDS, read=0.3))

        # One client leaves while it waits, one while it is answered.
        threads = [threading.Thread(target=leave_early) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.service.waiting + server.service.running == 2)
        for thread in threads:
            thread.join()
        wait_until(lambda: server.service.waiting == 0)

        def ended() -> bool:
            # A step at a time: a busy server may notice only after some steps that its client has left.
            engine.allow(1)
            time.sleep(0.05)
            return server.service.running == 0

        wait_until(ended)
        assert len(engine.removed) == 1
        assert 'status="499"' in client.get("/metrics").text or stream


def test_running_answers_are_completed_when_the_server_ends(models: Path) -> None:
    answers: list[httpx.Response] = []
    with stepped(models) as (server, _, _):

        def ask() -> None:
            answers.append(httpx.post(f"{server.url}/v1/completions", json=PROMPT, timeout=SECONDS))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: server.service.running == 1)
    # The block's end lets the engine go on and asks the server to end at the same time.
    thread.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 100


@pytest.mark.skipif(ENGINE == "vllm", reason="it is installed here")
def test_an_engine_that_is_not_installed_fails_with_the_name_of_its_package(models: Path) -> None:
    config = ServingConfig(model=ServedModel(name="base", path=str(models / "base")))
    with pytest.raises(ModelLoadError, match="the package vllm is not installed"):
        InferenceService(config, Settings(engine="vllm")).load()


def test_a_model_that_is_not_there_fails_with_a_sentence(tmp_path: Path) -> None:
    config = ServingConfig(model=ServedModel(name="base", path=str(tmp_path / "nothing")))
    with running(InferenceService(config), wait=False) as server, httpx.Client(base_url=server.url) as client:
        wait_until(lambda: client.get("/healthz").status_code == 503)
        assert str(tmp_path / "nothing") in client.get("/healthz").json()["reason"]
        assert client.post("/v1/completions", json=PROMPT).status_code == 503


@pytest.mark.engine
def test_process_text_works_inside_any_fastapi_application(server: Running) -> None:
    app = FastAPI()

    @app.post("/answer")
    def answer(text: Annotated[str, Body()]) -> str:
        return server.service.process_text(text, model="formal", max_tokens=10).text

    with TestClient(app) as client:
        answers = {client.post("/answer", json="Where is my order?").json() for _ in range(2)}
    (text,) = answers
    with server.openai as openai_client:
        chat = openai_client.chat.completions.create(
            model="formal", messages=[{"role": "user", "content": "Where is my order?"}], max_tokens=10, temperature=0
        )
    assert text == chat.choices[0].message.content


def test_process_text_needs_a_loaded_model(config: ServingConfig) -> None:
    with pytest.raises(NotReadyError, match="still loading"):
        InferenceService(config).process_text("hi")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=10)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
FIELDS = [
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "echo",
    "logit_bias",
    "best_of",
    "suffix",
    "tools",
    "response_format",
]
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | SCALARS, "content": JSON},
        optional={"name": JSON},
    ),
    max_size=3,
)
PLAUSIBLE = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(-1, 400), max_size=5) | st.text(max_size=20),
        "messages": MESSAGES,
        "max_tokens": st.integers(0, 3),
    },
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "logit_bias": st.dictionaries(st.integers(0, 400).map(str), st.floats(-100, 100), max_size=3),
        "echo": st.booleans(),
        "stream": st.booleans(),
        "n": st.integers(1, 3),
        "stop": st.lists(st.text(max_size=3), max_size=3),
        "frequency_penalty": st.floats(-2, 2),
    },
)
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.engine
@FUZZ
@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
    plausible=PLAUSIBLE,
    wild=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2),
)
def test_no_body_is_a_server_error(http: httpx.Client, path: str, plausible: Any, wild: Any) -> None:
    foreign = {"messages"} if path == "/v1/completions" else {"prompt", "echo"}
    known = {name: value for name, value in plausible.items() if name not in foreign}
    body = json.dumps({"model": "formal"} | known | wild)
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    else:
        assert '"error"' not in answer.text[:20]


@FUZZ
@given(
    body=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/plain", "", "multipart/form-data"])
)
def test_no_bytes_are_a_server_error(http: httpx.Client, body: bytes, kind: str) -> None:
    answer = http.post("/v1/completions", content=body, headers={"content-type": kind})
    assert answer.status_code == 400


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_process_text_refuses_a_seed_that_no_generator_takes(server: Running, seed: int) -> None:
    with pytest.raises(ValueError, match="is not a signed 64-bit integer"):
        server.service.process_text("hi", seed=seed)
