"""The interface between serving and computing: tokens in, tokens out.

A `Scheduler` thread owns an `Engine`. It adds sequences while the engine has capacity and calls `step` as long as there is
work. An engine knows nothing of HTTP, text, queues or threads; the rest of the server knows nothing of tensors. So an engine
can be replaced without a change outside its package.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from finetune_api.artifacts import ADAPTER_WEIGHTS_FILE
from finetune_model.chat import DEFAULT_SETTINGS, ChatSettings

MAX_TOP_LOGPROBS = 20
"""Most alternatives that a request may ask for per token; OpenAI's own limit."""
FinishReason = Literal["stop", "length"]
"""`stop`: an end token, a stop text or the end of the constraint; `length`: max_tokens."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of one sequence."""

    temperature: float = 1.0
    """0 is greedy: always the likeliest token."""
    top_p: float = 1.0
    """Nucleus sampling: probability that the candidates hold together."""
    top_k: int = 0
    """Number of likeliest tokens to choose from; 0 is all."""
    min_p: float = 0.0
    """Least probability of a candidate, as a share of the likeliest token's."""
    repetition_penalty: float | None = None
    """Divisor of the positive logits of tokens in prompt or answer, and factor of the negative ones; None is the model's own."""
    seed: int | None = None
    """The same seed gives the same tokens; None draws a new seed."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that was generated."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens, by token id."""


class Constraint(Protocol):
    """A rule that the answer of one sequence has to follow, token by token."""

    allowed: bytes
    """Bit mask of the next token: bit `i % 8` of byte `i // 8` allows token i. Tokens beyond its end are forbidden."""

    @property
    def complete(self) -> bool:
        """True when nothing may follow, not even an end token."""

    def consume(self, token: int) -> None:
        """Advance by a generated token and compute `allowed`. Raises ValueError with a reason if that is impossible."""

    def copy(self) -> Self:
        """Return an independent copy for another sequence."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One sequence to continue or to score."""

    prompt: list[int]
    """Token ids, at least one."""
    adapter: str | None
    """Name of the adapter, by which the waiting queue takes turns; None is the base model."""
    max_tokens: int
    """Most tokens to generate; 0 only scores the prompt."""
    weights: "AdapterWeights | None" = None
    """Result of `Engine.load_adapter` for the adapter version of this request; None is the base model."""
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer, in addition to those of the model's generation config."""
    ignore_eos: bool = False
    """Only `stop_ids` end the answer; the end tokens of the model's generation config do not."""
    min_tokens: int = 0
    """Fewest tokens before an end token may be generated."""
    logprobs: int | None = None
    """Number of the likeliest tokens to report per position; None reports no log-probabilities at all."""
    score_prompt: bool = False
    """Report the prompt's log-probabilities as well."""
    constraint: Constraint | None = None
    """Rule for the answer; None leaves it free."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and its log-probability (nats) under the model, before temperature, penalties and constraints."""

    token_id: int
    logprob: float | None = None
    """None when not requested, and for the first token of a prompt, which nothing precedes."""
    top: tuple[tuple[int, float], ...] = ()
    """Likeliest tokens at this position with their log-probabilities, best first."""


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The prompt's tokens with their log-probabilities; precedes all generated tokens."""

    tokens: list[ScoredToken]


@dataclass(frozen=True, slots=True)
class Generated:
    """One more token of the answer. The token that ends an answer is not reported."""

    token: ScoredToken


@dataclass(frozen=True, slots=True)
class Finished:
    """End of a complete sequence; no event follows."""

    reason: FinishReason
    completion_tokens: int
    """Number of generated tokens, the end token included."""
    end_token: int | None = None
    """The token that ended the answer; None if none did."""


@dataclass(frozen=True, slots=True)
class Failed:
    """End of a sequence that the engine could not complete; no event follows."""

    message: str


@dataclass(frozen=True, slots=True)
class Refused(Failed):
    """End of a sequence whose request cannot be met; the message names the cause in the request."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """End of a sequence that exceeded its time limit; no event follows. Sent by the scheduler, never by an engine."""

    seconds: float
    """The time limit."""


Event = PromptScored | Generated | Finished | Failed | TimedOut


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Properties of the loaded base model."""

    context_length: int
    """Longest prompt plus answer, in tokens."""
    vocabulary_size: int
    """Rows of the embedding; token ids are below this."""
    parameters: int
    dtype: str
    device: str


class AdapterWeights(Protocol):
    """One version of an adapter in the engine's memory, which is freed with the last reference."""

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors, in bytes."""


@dataclass(frozen=True)
class VerifiedAdapter:
    """A complete adapter folder whose configuration is plain LoRA."""

    name: str
    directory: Path
    digest: str
    """Digest of the manifest."""
    lora: dict[str, Any]
    """Arguments for peft's LoraConfig."""
    weights_sha256: str
    """SHA-256 of the file with the tensors, from the manifest."""
    has_tokenizer: bool
    """True if the folder has its own tokenizer; otherwise the base model's is used."""
    chat: ChatSettings = DEFAULT_SETTINGS
    """Settings that chats are rendered with, and tokens that end answers."""

    @property
    def weights(self) -> Path:
        """Path of the file with the tensors."""
        return self.directory / ADAPTER_WEIGHTS_FILE


class Engine(Protocol):
    """Token generator. Every method but `load_adapter` is called by one and the same thread."""

    capacity: int
    """Most sequences that run at the same time."""

    @property
    def cached_tokens(self) -> int:
        """Tokens reserved in the KV cache; 0 if no sequence runs. Any thread may read it."""

    @property
    def spare_memory(self) -> int:
        """Free bytes on the device that holds adapters."""

    def load_model(self, merged: VerifiedAdapter | None = None) -> ModelFacts:
        """Load the base model, and merge an adapter into its weights if one is given.

        Raises ModelLoadError or AdapterRefusedError.
        """

    def load_adapter(self, adapter: VerifiedAdapter) -> AdapterWeights | None:
        """Read one adapter into memory and return the handle for requests. Raises AdapterRefusedError.

        To remove or replace an adapter, drop every reference to the handle. Any one thread may call this while another
        thread calls `step`.
        """

    def add(self, key: int, request: TokenRequest) -> None:
        """Start a sequence; the caller respects `capacity`."""

    def step(self) -> list[tuple[int, Event]]:
        """Advance the running sequences by one chunk (a part of a prompt, or one token each) and return the events.

        A finished or failed sequence no longer runs. If this raises, no sequence runs any more.
        """

    def remove(self, key: int) -> None:
        """Drop a sequence; does nothing if it does not run."""


class ModelLoadError(Exception):
    """The base model cannot be served; the message names the model and the reason."""
