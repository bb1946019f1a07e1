"""The probe against a real HTTP server: every way an endpoint can answer has its verdict."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from finetune_api.fingerprint import Fingerprint
from finetune_api.serving import PromotionRequest
from finetune_operator.io.probe import ProbeResult, Served, ask_served, not_loaded, probe_adapter, promote
from support.cluster.fake_endpoint import (
    BASE,
    FINGERPRINT,
    TUNED,
    Behavior,
    FakeEndpoint,
    failing,
    merged,
    refusing,
    scores,
    serving,
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


def probe(
    endpoint: FakeEndpoint, behavior: Behavior, timeout: float = 5, fingerprint: Fingerprint = FINGERPRINT
) -> ProbeResult:
    endpoint.behaviors["ml"] = behavior
    return asyncio.run(probe_adapter(f"{endpoint.url}/ml/pod", "tone", "tiny", fingerprint, timeout))


def answering(body: object) -> Behavior:
    return lambda request: (200, body)  # type: ignore[return-value]


def logprobs(values: object) -> Behavior:
    return answering({"choices": [{"logprobs": {"token_logprobs": values}}]})


@pytest.mark.parametrize(
    ("behavior", "verified", "reason", "words"),
    [
        (serving("tone"), "True", "FingerprintMatched", "match the tuned model"),
        (serving("tone", tuned=[v + 0.01 for v in TUNED]), "True", "FingerprintMatched", "off by 0.010"),
        (serving("tone", tuned=BASE), "False", "AdapterHasNoEffect", "match the base model"),
        (serving("tone", tuned=[-7, -7, -7]), "False", "AdapterIncompatible", "neither"),
        (serving("tone", base=[-3, -3, -3]), "False", "AdapterIncompatible", "base model is not the one"),
        (refusing("tone"), "False", "AdapterIncompatible", "rank 64 > 16"),
        (merged("tone"), "True", "FingerprintMatched", "match the tuned model"),
        (merged("tone", tuned=BASE), "False", "AdapterHasNoEffect", "match the base model"),
        (merged("tone", tuned=[-7, -7, -7]), "False", "AdapterIncompatible", "neither"),
        (answering({}), "False", "AdapterIncompatible", "no log-probabilities"),
        (answering([]), "False", "AdapterIncompatible", "no log-probabilities"),
        (answering({"choices": [{"logprobs": None}]}), "False", "AdapterIncompatible", "no log-probabilities"),
        (logprobs([None, -1.0, -1.0]), "False", "AdapterIncompatible", "cannot be compared"),
        (logprobs([None, -1.0, None, -1.0, -1.0]), "False", "AdapterIncompatible", "no log-probabilities"),
        (logprobs([None, -1.0, float("nan"), -1.0, -1.0]), "False", "AdapterIncompatible", "not finite"),
        (failing(503), "Unknown", "EndpointUnreachable", "HTTP 503"),
        (failing(429), "Unknown", "EndpointUnreachable", "HTTP 429"),
        (failing(401), "Unknown", "EndpointUnreachable", "HTTP 401"),
    ],
)
def test_what_the_endpoint_answers_is_judged(
    endpoint: FakeEndpoint, behavior: Behavior, verified: str, reason: str, words: str
) -> None:
    result = probe(endpoint, behavior)
    assert (result.verified, result.reason) == (verified, reason)
    assert words in result.message


def test_the_probe_scores_and_generates_nothing() -> None:
    # An endpoint of its own: a request that an earlier probe gave up may arrive late.
    with FakeEndpoint() as endpoint:
        probe(endpoint, serving("tone"))
    tuned, base = sorted((request for _, request in endpoint.requests), key=lambda request: request["model"] == "tiny")
    assert tuned == {
        "model": "tone",
        "prompt": FINGERPRINT.probes[0].token_ids,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 0,
    }
    assert base["model"] == "tiny"


SEVERAL = FINGERPRINT.model_copy(update={"probes": FINGERPRINT.probes * 3})


def test_the_base_model_is_asked_for_one_of_several_probes() -> None:
    with FakeEndpoint() as endpoint:
        result = probe(endpoint, serving("tone"), fingerprint=SEVERAL)
    assert result.verified == "True"
    assert sorted(request["model"] for _, request in endpoint.requests) == ["tiny", "tone", "tone", "tone"]


def test_a_base_model_that_the_adapter_has_got_into_is_noticed(endpoint: FakeEndpoint) -> None:
    result = probe(endpoint, lambda _: scores(TUNED), fingerprint=SEVERAL)
    assert (result.verified, result.reason) == ("False", "AdapterIncompatible")
    assert "base model is not the one" in result.message


CHAT = FINGERPRINT.model_copy(update={"chat": "What is the capital of France?"})


@pytest.mark.parametrize(
    ("answer", "verified", "reason", "words"),
    [
        ((200, {"count": 2, "tokens": [1, 2]}), "True", "FingerprintMatched", "match the tuned model"),
        ((200, {"tokens": [1, 7]}), "False", "ChatTemplateDiffers", "position 1 (token 7 instead of token 2)"),
        ((200, {"tokens": [1, 2, 9]}), "False", "ChatTemplateDiffers", "3 tokens instead of 2"),
        ((200, {"tokens": [1]}), "False", "ChatTemplateDiffers", "(the end instead of token 2)"),
        ((200, {"tokens": []}), "False", "ChatTemplateDiffers", "0 tokens"),
        ((200, {"tokens": ["a"]}), "False", "AdapterIncompatible", "no token ids"),
        ((200, {}), "False", "AdapterIncompatible", "no token ids"),
        ((400, {"error": "no chat template"}), "False", "AdapterIncompatible", "no chat template"),
        ((404, {}), "True", "FingerprintMatched", "match the tuned model"),
        ((503, {}), "Unknown", "EndpointUnreachable", "HTTP 503"),
    ],
)
def test_an_endpoint_has_to_render_chats_as_the_training_run_did(
    answer: tuple[int, dict[str, object]], verified: str, reason: str, words: str
) -> None:
    asked = []
    with FakeEndpoint() as endpoint:
        endpoint.behaviors["ml"] = serving("tone")
        endpoint.tokenize = lambda request: (asked.append(request), answer)[1]
        result = asyncio.run(probe_adapter(f"{endpoint.url}/ml/pod", "tone", "tiny", CHAT, 5))
    assert (result.verified, result.reason) == (verified, reason)
    assert words in result.message
    assert asked == [{"model": "tone", "messages": [{"role": "user", "content": CHAT.chat}]}]


def test_nobody_listening_is_no_verdict() -> None:
    result = asyncio.run(probe_adapter("http://127.0.0.1:9", "tone", "tiny", FINGERPRINT, 5))
    assert (result.verified, result.reason) == ("Unknown", "EndpointUnreachable")


def test_a_silent_endpoint_costs_the_timeout_and_no_verdict(endpoint: FakeEndpoint) -> None:
    def slow(request: dict[str, object]) -> tuple[int, dict[str, object]]:
        time.sleep(1)
        return 200, {}

    started = time.monotonic()
    result = probe(endpoint, slow, timeout=0.2)
    assert result.verified == "Unknown"
    assert time.monotonic() - started < 0.9


def test_a_server_says_what_it_has_loaded_and_what_it_refused() -> None:
    listed = [{"name": "tone", "path": "/a", "digest": "sha256:1"}, {"name": "bad", "path": "/b"}]
    with FakeEndpoint(lambda *_: listed) as endpoint:
        endpoint.refused["/b"] = "its digest differs"
        served = asyncio.run(ask_served(f"{endpoint.url}/ml/pod", 5))
    assert served is not None
    assert served.has("tone", "sha256:1")
    assert not served.has("tone", "sha256:2")
    assert served.lacks("tone", "sha256:2")
    assert not served.lacks("bad", None)
    refused = not_loaded(served, "bad")
    assert (refused.verified, refused.reason, refused.loaded) == ("False", "AdapterIncompatible", False)
    assert "its digest differs" in refused.message


@pytest.mark.parametrize(
    ("served", "verified", "reason"), [(None, "Unknown", "EndpointUnreachable"), (Served({}), "Unknown", "Loading")]
)
def test_an_adapter_that_is_not_there_yet_is_no_verdict(served: Served | None, verified: str, reason: str) -> None:
    result = not_loaded(served, "tone")
    assert (result.verified, result.reason, result.is_final) == (verified, reason, False)


def test_a_list_that_a_server_cannot_use_says_why_nothing_comes() -> None:
    with FakeEndpoint() as endpoint:
        endpoint.list_problem = "adapters.0.promotion: Extra inputs are not permitted"
        result = not_loaded(asyncio.run(ask_served(f"{endpoint.url}/ml/pod", 5)), "tone")
    assert (result.verified, result.reason) == ("Unknown", "Loading")
    assert "cannot use its list of adapters: adapters.0.promotion" in result.message


def test_a_server_without_digests_is_taken_by_its_names() -> None:
    assert Served({"tone": None}).has("tone", "sha256:1")


def test_nobody_listening_serves_nothing() -> None:
    assert asyncio.run(ask_served("http://127.0.0.1:9", 5)) is None


def test_why_a_server_does_not_promote_is_told_and_never_raised(endpoint: FakeEndpoint) -> None:
    request = PromotionRequest(candidate="tone@1", token="a token")

    def ask(url: str) -> str | None:
        return asyncio.run(promote(url, request, 5))

    assert ask(f"{endpoint.url}/ml/pod") == 'HTTP 403: {"error": {"message": "wrong token"}}'
    assert ask("http://127.0.0.1:9") == "ClientConnectorError"
