"""The proof that an endpoint answers with the tuned weights: its fingerprint, replayed over the public HTTP API.

OpenAI's legacy completions score a given text: `echo` returns the prompt's own log-probabilities and `max_tokens: 0`
generates nothing. Any server that speaks them can be probed; nothing here knows which engine answers.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from finetune_api.fingerprint import Fingerprint, Observation, Probe, Verdict, judge
from finetune_api.reasons import Reason
from finetune_operator import metrics

Truth = Literal["True", "False", "Unknown"]

MAX_ERROR_CHARACTERS = 300
"""Of a server's error message in ours."""


@dataclass(frozen=True)
class ProbeResult:
    """What a probe showed; `verified` is Unknown when it showed nothing and should be repeated."""

    verified: Truth
    reason: Reason
    message: str


class _NoAnswerError(Exception):
    """The endpoint cannot be judged now: unreachable, overloaded, still loading."""


class _RefusedError(Exception):
    """The endpoint answers, and does not serve this adapter."""


RESULTS: dict[Verdict, tuple[Truth, Reason]] = {
    Verdict.MATCHED: ("True", Reason.FINGERPRINT_MATCHED),
    Verdict.NO_EFFECT: ("False", Reason.ADAPTER_HAS_NO_EFFECT),
    Verdict.INCOMPATIBLE: ("False", Reason.ADAPTER_INCOMPATIBLE),
}


async def probe_adapter(
    url: str, adapter: str, base: str, fingerprint: Fingerprint, timeout_seconds: float
) -> ProbeResult:
    """Replay a fingerprint against the API at `url` (which ends in /v1). Never raises for what the endpoint does."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_seconds)) as session:
            observed = [
                Observation(
                    tuned=await _score(session, url, adapter, probe), base=await _score(session, url, base, probe)
                )
                for probe in fingerprint.probes
            ]
        verdict, message = judge(fingerprint, observed)
    except _NoAnswerError as problem:
        return _result("Unknown", Reason.ENDPOINT_UNREACHABLE, str(problem))
    except _RefusedError as problem:
        return _result("False", Reason.ADAPTER_INCOMPATIBLE, str(problem))
    except ValueError as problem:
        return _result("False", Reason.ADAPTER_INCOMPATIBLE, f"The endpoint's scores cannot be compared: {problem}")
    verified, reason = RESULTS[verdict]
    return _result(verified, reason, message)


async def _score(session: aiohttp.ClientSession, url: str, model: str, probe: Probe) -> list[float]:
    """Log-probabilities of the continuation tokens of one probe."""
    request = {"model": model, "prompt": probe.token_ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    try:
        async with session.post(f"{url}/completions", json=request) as response:
            if response.status >= 300:
                raise _error(response.status, model, await response.text())
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError) as error:
        raise _NoAnswerError(f"The endpoint did not answer the probe: {type(error).__name__}.") from error
    except ValueError as error:
        raise _NoAnswerError("The endpoint answered the probe with something that is not JSON.") from error
    return _scored_tokens(answer, probe)


def _error(status: int, model: str, text: str) -> Exception:
    detail = text.strip()[:MAX_ERROR_CHARACTERS]
    if status in (400, 404, 422):
        return _RefusedError(f"The endpoint refused to score with model {model} ({status}): {detail}")
    return _NoAnswerError(f"The endpoint answered the probe with HTTP {status}.")


def _scored_tokens(answer: Any, probe: Probe) -> list[float]:
    try:
        scores = answer["choices"][0]["logprobs"]["token_logprobs"]
        continuation = [float(score) for score in scores[probe.prompt_tokens : len(probe.token_ids)]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise _RefusedError(
            "The endpoint's completions carry no logprobs for the prompt; it cannot be verified."
        ) from None
    if not all(math.isfinite(score) for score in continuation):
        raise _RefusedError("The endpoint's log-probabilities are not finite numbers.")
    return continuation


def _result(verified: Truth, reason: Reason, message: str) -> ProbeResult:
    metrics.PROBE_VERDICTS.labels(reason.value).inc()
    return ProbeResult(verified, reason, message)
