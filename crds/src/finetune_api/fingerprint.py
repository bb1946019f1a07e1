"""The fingerprint: a few log-probabilities that only the tuned weights produce, recorded when training ends.

The trainer scores short token sequences twice, with the adapter and without, and hands both series over. Whoever can
score the same sequences through an endpoint (OpenAI's `/v1/completions` with `echo` and `logprobs`) can tell whether that
endpoint applies the adapter, ignores it, or runs another base model. The sequences begin with fixed neutral prompts, not
with rows of the user's dataset: the fingerprint is shown in `status`, where training data has no place.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import SpecModel

MIN_EFFECT: Final = 0.005
"""Nats per token by which tuned and base must differ on average. fp32 against fp32 repeats to about 1e-5 across
machines, bf16 against fp32 to about 0.02; below 0.005 an adapter that is not applied could pass for one that is."""
MATCH_FRACTION: Final = 0.25
"""Observed values count as matching when they are off by less than this share of the effect (or `MIN_TOLERANCE`)."""
MIN_TOLERANCE: Final = 0.002
"""Nats per token of numerical difference that always counts as equal."""
BASE_TOLERANCE: Final = 0.10
"""Nats per token by which an endpoint's scores may ever differ from the recorded ones: room for another precision. It bounds
the share of a strong effect too: an adapter at half strength (a wrong alpha, say) keeps five sixths of an effect of 6 nats."""


class Probe(SpecModel):
    """One scored sequence: a prompt and the tuned model's own greedy continuation of it."""

    token_ids: Annotated[
        list[int], Field(description="tokenIds of prompt and continuation.", min_length=2, max_length=256)
    ]
    prompt_tokens: Annotated[
        int, Field(description="promptTokens is how many leading tokens are prompt; the rest is scored.", ge=1)
    ]
    tuned: Annotated[
        list[float],
        Field(description="tuned log-probability (nats) of each continuation token, adapter applied.", max_length=256),
    ]
    base: Annotated[
        list[float],
        Field(description="base log-probability (nats) of each continuation token, adapter off.", max_length=256),
    ]


class Fingerprint(SpecModel):
    """Expected log-probabilities with and without the adapter."""

    probes: Annotated[list[Probe], Field(description="probes to replay.", min_length=1, max_length=8)]
    dtype: Annotated[
        str, Field(description="dtype of the weights that were scored, for example float32.", max_length=16)
    ] = "float32"
    chat: Annotated[
        str | None,
        Field(
            description="chat is the user's message whose rendering by the adapter's own chat template is the prompt of the "
            "first probe; absent where there is no template, or one that renders differently from day to day.",
            max_length=200,
        ),
    ] = None

    @property
    def effect(self) -> float:
        """Mean absolute difference between tuned and base, nats per token."""
        return _mean_distance([(p.tuned, p.base) for p in self.probes])


class Verdict(StrEnum):
    """What replaying a fingerprint showed."""

    MATCHED = "Matched"
    NO_EFFECT = "NoEffect"
    INCOMPATIBLE = "Incompatible"


@dataclass(frozen=True)
class Observation:
    """Log-probabilities (nats) an endpoint gave for the continuation tokens of one probe."""

    tuned: list[float]
    """With `model` = the adapter's name."""
    base: list[float] | None
    """With `model` = the base model's name; None if it was not asked for, or the endpoint serves none because the adapter is
    merged into it."""


def judge(fingerprint: Fingerprint, observed: list[Observation]) -> tuple[Verdict, str]:
    """Compare what an endpoint answered with what training recorded; the sentence says the figures.

    Raises ValueError when the observation has another shape than the fingerprint.
    """
    to_tuned = _mean_distance([(p.tuned, o.tuned) for p, o in zip(fingerprint.probes, observed, strict=True)])
    to_base = _mean_distance([(p.base, o.tuned) for p, o in zip(fingerprint.probes, observed, strict=True)])
    seen_bases = [(p.base, o.base) for p, o in zip(fingerprint.probes, observed, strict=True) if o.base is not None]
    # The tuned weights contain those of the base, so a wrong one shows in them too; only the diagnosis is coarser then.
    base_drift = _mean_distance(seen_bases) if seen_bases else 0.0
    effect = fingerprint.effect
    tolerance = min(BASE_TOLERANCE, max(MIN_TOLERANCE, MATCH_FRACTION * effect))
    figures = f"distance to tuned {to_tuned:.4f}, to base {to_base:.4f}, effect {effect:.4f} nats per token"
    if effect < MIN_EFFECT:
        return Verdict.NO_EFFECT, f"Training changed the model by less than {MIN_EFFECT} nats per token: {figures}."
    if base_drift > BASE_TOLERANCE:
        return (
            Verdict.INCOMPATIBLE,
            f"The endpoint's base model is not the one the adapter was trained on: it is off by {base_drift:.4f} nats "
            "per token.",
        )
    if to_tuned <= tolerance:
        return Verdict.MATCHED, f"The endpoint answers with the tuned weights: {figures}."
    if to_base <= tolerance:
        return Verdict.NO_EFFECT, f"The endpoint answers like the base model: {figures}."
    return Verdict.INCOMPATIBLE, f"The endpoint matches neither the tuned nor the base model: {figures}."


def rendering_difference(fingerprint: Fingerprint, rendered: list[int]) -> str | None:
    """How an endpoint's token ids for `fingerprint.chat` differ from those of the training run; None if they are the same."""
    first = fingerprint.probes[0]
    expected = first.token_ids[: first.prompt_tokens]
    if rendered == expected:
        return None
    position = next(
        (i for i, (a, b) in enumerate(zip(rendered, expected, strict=False)) if a != b),
        min(len(rendered), len(expected)),
    )
    found, wanted = rendered[position : position + 1], expected[position : position + 1]
    return (
        f"The endpoint does not render chats as the training run did: {len(rendered)} tokens instead of {len(expected)}, the "
        f"first difference at position {position} ({_token(found)} instead of {_token(wanted)}). Its chat template or its "
        "tokenizer is not the one that the adapter was trained with."
    )


def _token(ids: list[int]) -> str:
    return f"token {ids[0]}" if ids else "the end"


def _mean_distance(pairs: list[tuple[list[float], list[float]]]) -> float:
    differences = [abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True)]
    if not differences:
        raise ValueError("a fingerprint without scored tokens proves nothing")
    return sum(differences) / len(differences)
