"""The proof that a server answers with the tuned weights: the adapter's fingerprint, replayed over the public HTTP API.

OpenAI's legacy completions score a given text: `echo` returns the prompt's own log-probabilities and `max_tokens: 0`
generates nothing. Any server that speaks them can be probed; nothing here knows which engine answers. What is loaded is read
from /v1/models, and why something is not from our own server's /readyz, where there is one. Scores need no chat template, so
that one is compared by itself, with vLLM's /tokenize, which our own server has too.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import aiohttp

from finetune_api.contract import PROMOTE_PATH
from finetune_api.fingerprint import Fingerprint, Observation, Probe, Verdict, judge, rendering_difference
from finetune_api.reasons import Reason
from finetune_api.serving import PromotionRequest
from finetune_operator.process import metrics

Truth = Literal["True", "False", "Unknown"]

MAX_ERROR_CHARACTERS: Final = 300
"""Of a server's error message in ours."""
MAX_REFUSAL_CHARACTERS: Final = 600
"""Of a server's reason for refusing an adapter."""


@dataclass(frozen=True)
class ProbeResult:
    """What a probe showed; `verified` is Unknown when it showed nothing and should be repeated."""

    verified: Truth
    reason: Reason
    message: str
    loaded: bool = True
    """The server has the version in memory."""
    digest: str | None = None
    """Digest of the version, as the server reports it."""

    @property
    def is_final(self) -> bool:
        """Asking the same process again would show the same."""
        return self.loaded and (self.verified != "Unknown" or self.reason == Reason.NO_FINGERPRINT)


@dataclass(frozen=True)
class Served:
    """What a server says it serves."""

    digests: Mapping[str, str | None]
    """By name, those in use; None where the server knows no digests."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why others are not, by name."""
    problem: str | None = None
    """Why it cannot use the list that it was given; it serves what it had before."""

    def lacks(self, name: str, digest: str | None) -> bool:
        """Whether it neither has this version under this name nor says why: its list may still be on the way."""
        return not self.has(name, digest) and name not in self.refused

    def has(self, name: str, digest: str | None) -> bool:
        """Whether it has this version under this name. Without digests, a name has to do."""
        return name in self.digests and (None in (digest, self.digests[name]) or self.digests[name] == digest)


class _NoAnswerError(Exception):
    """The endpoint cannot be judged now: unreachable, overloaded, still loading."""


class _RefusedError(Exception):
    """The endpoint answers, and does not serve this adapter."""


class _UnknownModelError(_RefusedError):
    """The endpoint serves nothing under this name."""


RESULTS: dict[Verdict, tuple[Truth, Reason]] = {
    Verdict.MATCHED: ("True", Reason.FINGERPRINT_MATCHED),
    Verdict.NO_EFFECT: ("False", Reason.ADAPTER_HAS_NO_EFFECT),
    Verdict.INCOMPATIBLE: ("False", Reason.ADAPTER_INCOMPATIBLE),
}


async def ask_served(url: str, timeout_seconds: float) -> Served | None:
    """What the server at `url` serves; None if it does not say. Never raises for what the server does."""
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_seconds)) as session:
            models = await _get(session, f"{url}/v1/models")
            state = await _get(session, f"{url}/readyz")
        digests = {str(model["id"]): model.get("digest") for model in (models or {})["data"]}
        refused = {str(name): str(reason) for name, reason in ((state or {}).get("refusedAdapters") or {}).items()}
        problem = (state or {}).get("adapterList")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Served(digests, refused, str(problem) if problem else None)


async def promote(url: str, request: PromotionRequest, timeout_seconds: float) -> str | None:
    """Have the server at `url` give a candidate its adapter's name; why it did not. Never raises for what the server does."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_seconds)) as session,
            session.post(f"{url}{PROMOTE_PATH}", json=request.to_dict()) as response,
        ):
            text = await response.text()
            return None if response.status == 204 else f"HTTP {response.status}: {text[:MAX_ERROR_CHARACTERS]}"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return type(error).__name__


async def _get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as response:
        return await response.json(content_type=None) if response.status == 200 else None


def not_loaded(served: Served | None, name: str) -> ProbeResult:
    """The result for a server that does not have the version."""
    if served is None:
        return _result("Unknown", Reason.ENDPOINT_UNREACHABLE, "The server does not say what it serves.", loaded=False)
    if name in served.refused:
        reason = served.refused[name][:MAX_REFUSAL_CHARACTERS]
        return _result("False", Reason.ADAPTER_INCOMPATIBLE, f"The server refused the adapter: {reason}", loaded=False)
    message = "The server has not loaded the adapter yet."
    if served.problem is not None:
        message = f"The server cannot use its list of adapters: {served.problem[:MAX_REFUSAL_CHARACTERS]}"
    return _result("Unknown", Reason.LOADING, message, loaded=False)


async def probe_adapter(
    url: str, adapter: str, base: str, fingerprint: Fingerprint, timeout_seconds: float
) -> ProbeResult:
    """Replay a fingerprint against the server at `url`. Never raises for what the server does."""
    # All sequences are sent at once, so each may have to wait for all others.
    timeout = aiohttp.ClientTimeout(total=timeout_seconds * len(fingerprint.probes))
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            tuned, scored_base, rendered = await asyncio.gather(
                asyncio.gather(*(_score(session, url, adapter, probe) for probe in fingerprint.probes)),
                # One tells another base model, or one that the adapter has got into; each costs clients time.
                _score_base(session, url, base, fingerprint.probes[0]),
                _rendered(session, url, adapter, fingerprint.chat),
            )
        observed = [Observation(tuned=scores, base=None) for scores in tuned]
        observed[0] = replace(observed[0], base=scored_base)
        verdict, message = judge(fingerprint, observed)
    except _NoAnswerError as problem:
        return _result("Unknown", Reason.ENDPOINT_UNREACHABLE, str(problem))
    except _RefusedError as problem:
        return _result("False", Reason.ADAPTER_INCOMPATIBLE, str(problem))
    except ValueError as problem:
        return _result("False", Reason.ADAPTER_INCOMPATIBLE, f"The endpoint's scores cannot be compared: {problem}")
    verified, reason = RESULTS[verdict]
    difference = rendering_difference(fingerprint, rendered) if rendered is not None else None
    if verdict is Verdict.MATCHED and difference:
        return _result("False", Reason.CHAT_TEMPLATE_DIFFERS, difference)
    return _result(verified, reason, message)


async def _score(session: aiohttp.ClientSession, url: str, model: str, probe: Probe) -> list[float]:
    """Log-probabilities of the continuation tokens of one probe."""
    request = {"model": model, "prompt": probe.token_ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    return _scored_tokens(await _post(session, f"{url}/v1/completions", model, request), probe)


async def _score_base(session: aiohttp.ClientSession, url: str, model: str, probe: Probe) -> list[float] | None:
    """The same for the base model; None if it is not served, because the adapter is merged into its weights."""
    try:
        return await _score(session, url, model, probe)
    except _UnknownModelError:
        return None


async def _rendered(session: aiohttp.ClientSession, url: str, model: str, chat: str | None) -> list[int] | None:
    """Token ids that the endpoint makes of a user's message; None if there is no message, or no route that shows them."""
    if chat is None:
        return None
    request = {"model": model, "messages": [{"role": "user", "content": chat}]}
    try:
        answer = await _post(session, f"{url}/tokenize", model, request)
    except _UnknownModelError:
        # The scores say whether the model is known; the route need not be.
        return None
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise _RefusedError(
            "The endpoint's answer to /tokenize carries no token ids; its chat template cannot be compared."
        )
    return tokens


async def _post(session: aiohttp.ClientSession, url: str, model: str, request: dict[str, Any]) -> Any:
    """The document of an answer."""
    try:
        async with session.post(url, json=request) as response:
            if response.status >= 300:
                raise _error(response.status, model, await response.text())
            return await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError) as error:
        raise _NoAnswerError(f"The endpoint did not answer the probe: {type(error).__name__}.") from error
    except ValueError as error:
        raise _NoAnswerError("The endpoint answered the probe with something that is not JSON.") from error


def _error(status: int, model: str, text: str) -> Exception:
    detail = text.strip()[:MAX_ERROR_CHARACTERS]
    if status in (400, 404, 422):
        kind = _UnknownModelError if status == 404 else _RefusedError
        return kind(f"The endpoint refused to score with model {model} ({status}): {detail}")
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


def _result(verified: Truth, reason: Reason, message: str, *, loaded: bool = True) -> ProbeResult:
    metrics.PROBE_VERDICTS.labels(reason.value).inc()
    return ProbeResult(verified, reason, message, loaded)
