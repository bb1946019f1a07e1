"""Proof that a server answers with the tuned weights: the adapter's fingerprint, replayed over the public HTTP API.

OpenAI's legacy completions score a given text: `echo` returns the prompt's own log-probabilities and `max_tokens: 0`
generates nothing. Any server with that API can be probed, whatever its engine. Loaded models come from /v1/models; the reasons
for refused adapters come from /readyz of our own server. Scores do not depend on the chat template, so the template is compared
separately, with vLLM's /tokenize, which our own server has too.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import aiohttp

from finetune_api.contract import PROMOTE_PATH
from finetune_api.fingerprint import Fingerprint, Observation, Probe, Verdict, judge, rendering_difference
from finetune_api.reasons import Reason
from finetune_api.serving import PromotionRequest
from finetune_operator.kubernetes_types import Truth
from finetune_operator.process import metrics

MAX_ERROR_CHARACTERS: Final = 300
"""Characters of a server's error message that are quoted."""
MAX_REFUSAL_CHARACTERS: Final = 600
"""Characters of a server's reason for refusing an adapter that are quoted."""


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe. `verified` is Unknown if the probe was inconclusive and should be repeated."""

    verified: Truth
    reason: Reason
    message: str
    loaded: bool = True
    """The server has the version in memory."""
    digest: str | None = None
    """Digest of the version, as the server reports it."""

    @property
    def is_final(self) -> bool:
        """True if another probe of the same process would have the same result."""
        return self.loaded and (self.verified != "Unknown" or self.reason == Reason.NO_FINGERPRINT)


@dataclass(frozen=True)
class Served:
    """Models and adapters that a server reports."""

    digests: Mapping[str, str | None]
    """Digests of the served versions by name; None if the server reports no digests."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Reasons for refused adapters by name."""
    problem: str | None = None
    """Reason why the server cannot use its list of adapters; it keeps serving the previous one."""

    def lacks(self, name: str, digest: str | None) -> bool:
        """Return whether the version is neither served under this name nor refused: the list may still be on its way."""
        return not self.has(name, digest) and name not in self.refused

    def has(self, name: str, digest: str | None) -> bool:
        """Return whether the version is served under this name. Without digests, the name alone decides."""
        return name in self.digests and (None in (digest, self.digests[name]) or self.digests[name] == digest)


class _NoAnswerError(Exception):
    """The endpoint cannot be probed now: unreachable, overloaded or loading."""


class _RefusedError(Exception):
    """The endpoint answers but does not serve this adapter."""


class _UnknownModelError(_RefusedError):
    """The endpoint serves nothing under this name."""


RESULTS: dict[Verdict, tuple[Truth, Reason]] = {
    Verdict.MATCHED: ("True", Reason.FINGERPRINT_MATCHED),
    Verdict.NO_EFFECT: ("False", Reason.ADAPTER_HAS_NO_EFFECT),
    Verdict.INCOMPATIBLE: ("False", Reason.ADAPTER_INCOMPATIBLE),
}


async def ask_served(url: str, timeout_seconds: float) -> Served | None:
    """Ask the server at `url` for its models; None if it does not answer properly. Never raises for a server's behavior."""
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
    """Ask the server at `url` to serve a candidate under its adapter's name. Return why it did not, or None.

    Never raises for a server's behavior.
    """
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
    """Return the result for a server that has not loaded the version."""
    if served is None:
        return _result("Unknown", Reason.ENDPOINT_UNREACHABLE, "The server does not answer /v1/models.", loaded=False)
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
    """Replay a fingerprint against the server at `url`. Never raises for a server's behavior."""
    # All sequences are sent at once, so each may wait for all others.
    timeout = aiohttp.ClientTimeout(total=timeout_seconds * len(fingerprint.probes))
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            tuned, scored_base, rendered = await asyncio.gather(
                asyncio.gather(*(_score(session, url, adapter, probe) for probe in fingerprint.probes)),
                # One sequence suffices to detect another base model; each one more would cost clients time.
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
    """Score one probe: return the log-probabilities of its continuation tokens."""
    request = {"model": model, "prompt": probe.token_ids, "echo": True, "logprobs": 1, "max_tokens": 0}
    return _scored_tokens(await _post(session, f"{url}/v1/completions", model, request), probe)


async def _score_base(session: aiohttp.ClientSession, url: str, model: str, probe: Probe) -> list[float] | None:
    """Score one probe with the base model; None if it is not served because the adapter is merged into its weights."""
    try:
        return await _score(session, url, model, probe)
    except _UnknownModelError:
        return None


async def _rendered(session: aiohttp.ClientSession, url: str, model: str, chat: str | None) -> list[int] | None:
    """Return the token ids of a user's message as the endpoint renders it; None without a message or without /tokenize."""
    if chat is None:
        return None
    request = {"model": model, "messages": [{"role": "user", "content": chat}]}
    try:
        answer = await _post(session, f"{url}/tokenize", model, request)
    except _UnknownModelError:
        # The scores show whether the model is known, and this route is optional.
        return None
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise _RefusedError(
            "The endpoint's answer to /tokenize has no token ids, so its chat template cannot be compared."
        )
    return tokens


async def _post(session: aiohttp.ClientSession, url: str, model: str, request: dict[str, Any]) -> Any:
    """Post a request and return the JSON of the answer. Raises _NoAnswerError or _RefusedError."""
    try:
        async with session.post(url, json=request) as response:
            if response.status >= 300:
                raise _error(response.status, model, await response.text())
            return await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError) as error:
        raise _NoAnswerError(f"The endpoint did not answer the probe: {type(error).__name__}.") from error
    except ValueError as error:
        raise _NoAnswerError("The endpoint's answer to the probe is not JSON.") from error


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
            "The endpoint's completions have no log-probabilities for the prompt, so it cannot be verified."
        ) from None
    if not all(math.isfinite(score) for score in continuation):
        raise _RefusedError("The endpoint's log-probabilities are not finite numbers.")
    return continuation


def _result(verified: Truth, reason: Reason, message: str, *, loaded: bool = True) -> ProbeResult:
    metrics.PROBE_VERDICTS.labels(reason.value).inc()
    return ProbeResult(verified, reason, message, loaded)
