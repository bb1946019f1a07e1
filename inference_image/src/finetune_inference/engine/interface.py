"""The seam between serving and computing: tokens in, tokens out.

A `Scheduler` thread owns an `Engine`: it adds sequences while the engine has room and calls `step` as long as there is
work. An engine knows nothing of HTTP, text, queues or threads; the rest knows nothing of tensors. Replacing the engine by
another library's changes nothing outside of it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from finetune_api.artifacts import ADAPTER_WEIGHTS_FILE

MAX_TOP_LOGPROBS = 20
"""Most alternatives that a request may ask for per token; OpenAI's own limit."""
FinishReason = Literal["stop", "length"]
"""`stop`: an end token, a stop text or the end of what the constraint allows; `length`: max_tokens."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is picked."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Share of probability that the candidates hold together."""
    seed: int | None = None
    """Same seed, same tokens; None draws a fresh one."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that was generated."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""


class Constraint(Protocol):
    """What an answer has to look like, token by token; belongs to one sequence."""

    allowed: bytes
    """Bit `i % 8` of byte `i // 8` is set if token i may come next; there need not be a bit for every token."""

    @property
    def complete(self) -> bool:
        """Nothing may follow, not even an end token."""

    def take(self, token: int) -> None:
        """Note that a token came, and find out what may follow. Raises ValueError with a reason if that is impossible."""

    def copy(self) -> Self:
        """The same for another sequence."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One sequence to continue or to score."""

    prompt: list[int]
    """Token ids, at least one."""
    adapter: str | None
    """Name of the adapter, for taking turns; None is the base model."""
    max_tokens: int
    """Tokens to generate at most; 0 only reads the prompt."""
    weights: "AdapterWeights | None" = None
    """What `Engine.load_adapter` returned for the version that this request is answered with; None is the base model."""
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer, beside those of the model's own generation config."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report at each position; None reports no log-probabilities at all."""
    score_prompt: bool = False
    """Report the prompt's log-probabilities as well."""
    constraint: Constraint | None = None
    """What the answer has to look like; None leaves it free."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and its log-probability (nats) under the model, before temperature, penalties and constraints."""

    token_id: int
    logprob: float | None = None
    """None when not asked for, and for a prompt's first token: nothing comes before it."""
    top: tuple[tuple[int, float], ...] = ()
    """Likeliest tokens at this position, best first."""


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The prompt's tokens with their log-probabilities; comes before any generated token."""

    tokens: list[ScoredToken]


@dataclass(frozen=True, slots=True)
class Generated:
    """One more token of the answer. The token that ends it is not reported."""

    token: ScoredToken


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence is complete; nothing follows."""

    reason: FinishReason
    completion_tokens: int
    """Tokens generated, the ending one included."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine failed on this sequence, or ended before it; nothing follows."""

    message: str


@dataclass(frozen=True, slots=True)
class Refused(Failed):
    """The sequence cannot go on as the request wants it; the reason lies in the request, and the message says it."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The sequence took longer than sequences may; nothing follows. Comes from the scheduler, never from an engine."""

    seconds: float
    """The time that it had."""


Event = PromptScored | Generated | Finished | Failed | TimedOut


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rest needs to know about the loaded base model."""

    context_length: int
    """Longest prompt plus answer in tokens."""
    vocabulary_size: int
    """Token ids are below this: rows of the embedding."""
    parameters: int
    dtype: str
    device: str


class AdapterWeights(Protocol):
    """One version of an adapter in the engine's memory; free again when nobody refers to it any more."""

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""


@dataclass(frozen=True)
class VerifiedAdapter:
    """A whole adapter folder with a configuration that is plain LoRA."""

    name: str
    directory: Path
    digest: str
    """Digest of the manifest."""
    lora: dict[str, Any]
    """Arguments for peft's LoraConfig."""
    weights_sha256: str
    """What the manifest says of the file with the tensors."""
    has_tokenizer: bool
    """The folder has a tokenizer of its own; else the base model's is used."""

    @property
    def weights(self) -> Path:
        """The file with the tensors."""
        return self.directory / ADAPTER_WEIGHTS_FILE


class Engine(Protocol):
    """Computes tokens. Every method but `load_adapter` is called by one and the same thread."""

    capacity: int
    """Sequences that can be in work at the same time."""

    @property
    def cached_tokens(self) -> int:
        """Tokens that room for keys and values is taken for; 0 if nothing is in work. Any thread may ask."""

    @property
    def spare_memory(self) -> int:
        """Bytes that are free where adapters go."""

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        """Load the base model, with an adapter as a part of its weights if there is one.

        Raises ModelLoadError or AdapterRefusedError.
        """

    def load_adapter(self, adapter: VerifiedAdapter) -> AdapterWeights | None:
        """Read one adapter into memory. Raises AdapterRefusedError.

        Returns what requests refer to it by: forgetting that is all there is to removing or replacing an adapter. Any one
        thread may call it, while another one works.
        """

    def add(self, key: int, request: TokenRequest) -> None:
        """Take a sequence into work; there is room for it."""

    def step(self) -> list[tuple[int, Event]]:
        """Advance the sequences in work by one piece (a slice of a prompt, or a token each) and say what came of it.

        A sequence that finished or failed is no longer in work. May raise: then no sequence is in work any more.
        """

    def remove(self, key: int) -> None:
        """Forget a sequence; nothing happens if it is not in work."""


class ModelLoadError(Exception):
    """The base model cannot be served; the message names it and says why."""
