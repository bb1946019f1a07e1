"""The fingerprint: a few log-probabilities that only the tuned weights produce, recorded when training ends.

The trainer scores short token sequences twice, with the adapter and without, and records both series. Scoring the same
sequences through an endpoint (OpenAI's `/v1/completions` with `echo` and `logprobs`) shows whether that
endpoint applies the adapter, ignores it, or runs another base model. The sequences begin with fixed neutral prompts, not
with rows of the user's dataset, because the fingerprint is shown in `status`, where training data does not belong.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import SpecModel

MIN_EFFECT: Final = 0.005
"""Nats per token by which tuned and base must differ on average. float32 scores repeat to about 1e-5 across machines,
bfloat16 against float32 to about 0.02; below 0.005 an adapter that is not applied could pass for one that is."""
MATCH_FRACTION: Final = 0.25
"""Share of the effect by which observed scores may differ and still match (but see `MIN_TOLERANCE`)."""
MIN_TOLERANCE: Final = 0.002
"""Numerical difference in nats per token that always counts as equal."""
BASE_TOLERANCE: Final = 0.10
"""Largest difference in nats per token between an endpoint's scores and the recorded ones, which leaves room for another
precision. It also bounds the share of a strong effect: an adapter at half strength (a wrong alpha, say) keeps five sixths of an
effect of 6 nats."""


class Probe(SpecModel):
    """One scored sequence: a prompt and the tuned model's own greedy continuation of it."""

    token_ids: Annotated[
        list[int],
        Field(description="tokenIds lists the token ids of prompt and continuation.", min_length=2, max_length=256),
    ]
    prompt_tokens: Annotated[
        int,
        Field(
            description="promptTokens is the number of leading tokens that are the prompt; the rest is scored.", ge=1
        ),
    ]
    tuned: Annotated[
        list[float],
        Field(
            description="tuned lists the log-probability in nats of each continuation token with the adapter.",
            max_length=256,
        ),
    ]
    base: Annotated[
        list[float],
        Field(
            description="base lists the log-probability in nats of each continuation token without the adapter.",
            max_length=256,
        ),
    ]


class Fingerprint(SpecModel):
    """Expected log-probabilities with and without the adapter."""

    probes: Annotated[
        list[Probe],
        Field(description="probes lists the scored sequences that are replayed.", min_length=1, max_length=8),
    ]
    dtype: Annotated[
        str, Field(description="dtype is the data type of the scored weights, for example float32.", max_length=16)
    ] = "float32"
    chat: Annotated[
        str | None,
        Field(
            description="chat is the user's message that, rendered by the adapter's chat template, is the prompt of the "
            "first probe. Unset if there is no template, or if it depends on the date.",
            max_length=200,
        ),
    ] = None

    @property
    def effect(self) -> float:
        """Mean absolute difference between tuned and base in nats per token."""
        return mean_distance([(p.tuned, p.base) for p in self.probes])

    @property
    def tolerance(self) -> float:
        """Mean difference in nats per token up to which scores match."""
        return min(BASE_TOLERANCE, max(MIN_TOLERANCE, MATCH_FRACTION * self.effect))


class Verdict(StrEnum):
    """Result of replaying a fingerprint."""

    MATCHED = "Matched"
    NO_EFFECT = "NoEffect"
    INCOMPATIBLE = "Incompatible"


@dataclass(frozen=True)
class Observation:
    """Log-probabilities in nats that an endpoint returned for the continuation tokens of one probe."""

    tuned: list[float]
    """Those for `model` = the adapter's name."""
    base: list[float] | None
    """Those for `model` = the base model's name; None if it was not requested, or is not served because the adapter is merged
    into it."""


def judge(fingerprint: Fingerprint, observed: list[Observation]) -> tuple[Verdict, str]:
    """Compare an endpoint's scores with the recorded ones; return the verdict and a sentence with the figures.

    Raises ValueError if the observation has another shape than the fingerprint.
    """
    to_tuned = mean_distance([(p.tuned, o.tuned) for p, o in zip(fingerprint.probes, observed, strict=True)])
    to_base = mean_distance([(p.base, o.tuned) for p, o in zip(fingerprint.probes, observed, strict=True)])
    seen_bases = [(p.base, o.base) for p, o in zip(fingerprint.probes, observed, strict=True) if o.base is not None]
    # A wrong base model also shows in the tuned scores, so without base scores only the diagnosis is less precise.
    base_drift = mean_distance(seen_bases) if seen_bases else 0.0
    effect = fingerprint.effect
    tolerance = fingerprint.tolerance
    if effect < MIN_EFFECT:
        return (
            Verdict.NO_EFFECT,
            f"Training changed nothing measurable ({effect:.4f} nats per token; {MIN_EFFECT} is the least that can be verified). "
            "Use more steps or a higher learningRate.",
        )
    if base_drift > BASE_TOLERANCE:
        return (
            Verdict.INCOMPATIBLE,
            f"The endpoint's base model is not the one that the adapter was trained on: its answers are off by {base_drift:.3f} "
            "nats per token.",
        )
    if to_tuned <= tolerance:
        return (
            Verdict.MATCHED,
            f"The answers match the tuned model (off by {to_tuned:.3f} nats per token; the base model by {to_base:.3f}).",
        )
    if to_base <= tolerance:
        return (
            Verdict.NO_EFFECT,
            f"The answers match the base model, so the adapter is not applied (off by {to_base:.3f} nats per token; the tuned "
            f"model by {to_tuned:.3f}).",
        )
    return (
        Verdict.INCOMPATIBLE,
        f"The answers match neither the tuned model (off by {to_tuned:.3f} nats per token) nor the base model (off by "
        f"{to_base:.3f}).",
    )


def rendering_difference(fingerprint: Fingerprint, rendered: list[int]) -> str | None:
    """Describe how an endpoint's token ids for `fingerprint.chat` differ from those of the training run; None if they do not."""
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
        f"The endpoint renders chats differently from the training run: {len(rendered)} tokens instead of {len(expected)}, the "
        f"first difference at position {position} ({_token(found)} instead of {_token(wanted)}). Its chat template or "
        "tokenizer is not the one that the adapter was trained with."
    )


def _token(ids: list[int]) -> str:
    return f"token {ids[0]}" if ids else "the end"


def mean_distance(pairs: list[tuple[list[float], list[float]]]) -> float:
    """Return the mean absolute difference of two series per probe. Raises ValueError without any score."""
    differences = [abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True)]
    if not differences:
        raise ValueError("a fingerprint without scored tokens proves nothing")
    return sum(differences) / len(differences)
