"""The probe against a real HTTP server: every way an endpoint can answer has its verdict."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from fake_endpoint import BASE, FINGERPRINT, TUNED, Behaviour, FakeEndpoint, failing, refusing, serving

from finetune_operator.probe import ProbeResult, probe_adapter


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as endpoint:
        yield endpoint


def probe(endpoint: FakeEndpoint, behaviour: Behaviour, timeout: float = 5) -> ProbeResult:
    endpoint.behaviours["ml"] = behaviour
    return asyncio.run(probe_adapter(f"{endpoint.url}/ml/v1", "tone", "tiny", FINGERPRINT, timeout))


def answering(body: object) -> Behaviour:
    return lambda request: (200, body)  # type: ignore[return-value]


def logprobs(values: object) -> Behaviour:
    return answering({"choices": [{"logprobs": {"token_logprobs": values}}]})


@pytest.mark.parametrize(
    ("behaviour", "verified", "reason", "words"),
    [
        (serving("tone"), "True", "FingerprintMatched", "tuned weights"),
        (serving("tone", tuned=[v + 0.01 for v in TUNED]), "True", "FingerprintMatched", "0.0100"),
        (serving("tone", tuned=BASE), "False", "AdapterHasNoEffect", "like the base model"),
        (serving("tone", tuned=[-7, -7, -7]), "False", "AdapterIncompatible", "neither"),
        (serving("tone", base=[-3, -3, -3]), "False", "AdapterIncompatible", "base model is not the one"),
        (refusing("tone"), "False", "AdapterIncompatible", "rank 64 > 16"),
        (answering({}), "False", "AdapterIncompatible", "no logprobs"),
        (answering([]), "False", "AdapterIncompatible", "no logprobs"),
        (answering({"choices": [{"logprobs": None}]}), "False", "AdapterIncompatible", "no logprobs"),
        (logprobs([None, -1.0, -1.0]), "False", "AdapterIncompatible", "cannot be compared"),
        (logprobs([None, -1.0, None, -1.0, -1.0]), "False", "AdapterIncompatible", "no logprobs"),
        (logprobs([None, -1.0, float("nan"), -1.0, -1.0]), "False", "AdapterIncompatible", "not finite"),
        (failing(503), "Unknown", "EndpointUnreachable", "HTTP 503"),
        (failing(429), "Unknown", "EndpointUnreachable", "HTTP 429"),
        (failing(401), "Unknown", "EndpointUnreachable", "HTTP 401"),
    ],
)
def test_what_the_endpoint_answers_is_judged(
    endpoint: FakeEndpoint, behaviour: Behaviour, verified: str, reason: str, words: str
) -> None:
    result = probe(endpoint, behaviour)
    assert (result.verified, result.reason) == (verified, reason)
    assert words in result.message


def test_the_probe_scores_and_generates_nothing(endpoint: FakeEndpoint) -> None:
    endpoint.requests.clear()
    probe(endpoint, serving("tone"))
    tuned, base = (request for _, request in endpoint.requests)
    assert tuned == {
        "model": "tone",
        "prompt": FINGERPRINT.probes[0].token_ids,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 0,
    }
    assert base["model"] == "tiny"


def test_nobody_listening_is_no_verdict() -> None:
    result = asyncio.run(probe_adapter("http://127.0.0.1:9/v1", "tone", "tiny", FINGERPRINT, 5))
    assert (result.verified, result.reason) == ("Unknown", "EndpointUnreachable")


def test_a_silent_endpoint_costs_the_timeout_and_no_verdict(endpoint: FakeEndpoint) -> None:
    def slow(request: dict[str, object]) -> tuple[int, dict[str, object]]:
        time.sleep(1)
        return 200, {}

    started = time.monotonic()
    result = probe(endpoint, slow, timeout=0.2)
    assert result.verified == "Unknown"
    assert time.monotonic() - started < 0.9
