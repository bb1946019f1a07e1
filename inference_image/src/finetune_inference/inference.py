"""`InferenceService`: a base model and its adapters, loaded and ready to process text.

It knows nothing of HTTP, so that any program can use it. In a FastAPI application of your own:

    from finetune_inference.config import standalone_config
    from finetune_inference.inference import InferenceService

    service = InferenceService(standalone_config("/models/smollm2", {"support-tone": "/adapters/support-tone"}))

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        service.start()  # loads in a thread of its own; `service.ready` turns true
        yield
        service.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/answer")
    def answer(text: Annotated[str, Body()]) -> str:  # a plain def: FastAPI runs it in a thread, and waiting is fine
        return service.process_text(text, model="support-tone").text

`finetune_inference.app` is the OpenAI-compatible application around the same service.
"""

import logging
import math
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.artifacts import sha256_of
from finetune_api.serving import ServedAdapter, ServingConfig
from finetune_inference.adapters import TOKENIZER_FILES, AdapterRefusedError, VerifiedAdapter, verify
from finetune_inference.config import Settings
from finetune_inference.engine import (
    Engine,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generated,
    ModelFacts,
    ModelLoadError,
    Sampling,
    TokenRequest,
)
from finetune_inference.prefetch import prefetch
from finetune_inference.scheduler import Listener, Scheduler, SchedulerStoppedError, Ticket
from finetune_inference.text import Answer, Vocabulary, load_vocabulary

log = logging.getLogger(__name__)

MakeEngine = Callable[[ServingConfig, Settings], Engine]
"""Makes an engine; called in the thread that will own it."""


class UnknownModelError(LookupError):
    """No such model, or an adapter that was refused; the message says which and why."""


class NotReadyError(RuntimeError):
    """The model is still loading, or cannot be served; the message says which."""


class ContextLengthError(ValueError):
    """Prompt and answer do not fit the model's context."""

    def __init__(self, limit: int, prompt_tokens: int, max_tokens: int) -> None:
        super().__init__(f"{prompt_tokens} + {max_tokens} tokens do not fit the context of {limit}")
        self.limit = limit
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens


@dataclass(frozen=True)
class ServedModel:
    """A name that requests can ask for."""

    name: str
    vocabulary: Vocabulary
    root: str
    """Where the weights are."""
    adapter: VerifiedAdapter | None = None
    """None for the base model."""
    parent: str | None = None
    """Name of the base model; None for the base model itself."""
    weights: Any = None
    """What the engine knows the adapter by; None for the base model."""

    @property
    def adapter_name(self) -> str | None:
        """What the engine calls it."""
        return self.adapter.name if self.adapter else None


@dataclass(frozen=True)
class TextResult:
    """An answer."""

    text: str
    finish_reason: FinishReason
    model: str
    prompt_tokens: int
    completion_tokens: int


class InferenceService:
    """Loads a fine-tuned or a base model and processes text with it."""

    def __init__(
        self, config: ServingConfig, settings: Settings | None = None, make_engine: MakeEngine | None = None
    ) -> None:
        self.config = config
        self.settings = settings or Settings()
        self.created = int(time.time())
        self.draining = False
        """Set from outside when the process is about to end: not ready any more, still answering."""
        self.refused: dict[str, str] = {}
        """Adapters that are not served, and why."""
        self._make_engine = make_engine or _transformers_engine
        self._models: dict[str, ServedModel] = {}
        self._facts: ModelFacts | None = None
        self._vocabularies: dict[tuple[str, ...], Vocabulary] = {}
        self._scheduler = Scheduler(self._prepare, max_waiting=self.settings.max_waiting)

    def start(self) -> None:
        """Begin to load in the background; `ready` says when that is done. Call once."""
        self._scheduler.start()

    def load(self) -> None:
        """Load and wait until a first token was generated. Raises ModelLoadError if the base model cannot be served.

        An adapter that cannot be served is no error: see `refused`.
        """
        self.start()
        self._scheduler.wait_prepared()

    def wait_loaded(self) -> None:
        """Wait for what `start` began. Raises as `load` does."""
        self._scheduler.wait_prepared()

    def close(self) -> None:
        """End the engine's thread; unfinished work fails."""
        self._scheduler.stop(timeout=5.0)

    @property
    def ready(self) -> bool:
        """Requests are answered, and the process is not about to end."""
        return self._scheduler.ready and not self.draining

    @property
    def failure(self) -> str | None:
        """Why nothing can be served any more; None while all is well or still loading."""
        return str(self._scheduler.failure) if self._scheduler.failure else None

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return self._scheduler.waiting

    @property
    def running(self) -> int:
        """Sequences in work."""
        return self._scheduler.running

    @property
    def facts(self) -> ModelFacts:
        """What is known about the base model. Raises NotReadyError."""
        self._require_loaded()
        assert self._facts is not None  # noqa: S101 - set before the scheduler calls itself ready
        return self._facts

    def models(self) -> list[ServedModel]:
        """The base model and the loaded adapters. Raises NotReadyError."""
        self._require_loaded()
        return list(self._models.values())

    def model(self, name: str | None = None) -> ServedModel:
        """A model by name; None is the base model. Raises NotReadyError or UnknownModelError."""
        self._require_loaded()
        name = name or self.config.model.name
        if name in self._models:
            return self._models[name]
        if name in self.refused:
            raise UnknownModelError(f"The adapter {name!r} is not served: {self.refused[name]}")
        raise UnknownModelError(f"The model {name!r} does not exist; there are {', '.join(self._models)}.")

    def fit(self, prompt: Sequence[int], max_tokens: int | None) -> int:
        """Tokens that the answer may have: what was asked for, or what there is room for. Raises ContextLengthError."""
        limit = self.facts.context_length
        if max_tokens is None:
            max_tokens = max(1, min(self.settings.max_output_tokens, limit - len(prompt)))
        if len(prompt) + max_tokens > limit:
            raise ContextLengthError(limit, len(prompt), max_tokens)
        return max_tokens

    def submit(self, sequences: Sequence[tuple[TokenRequest, Listener]]) -> list[Ticket]:
        """Queue sequences, all or none; their events come to the listeners, from another thread.

        Raises NotReadyError or QueueFullError.
        """
        self._require_loaded()
        try:
            return self._scheduler.submit(sequences)
        except SchedulerStoppedError as error:
            raise NotReadyError(str(error)) from None

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Stop work on sequences; harmless if they are complete."""
        self._scheduler.cancel(tickets)

    def process_text(
        self,
        text: str,
        *,
        model: str | None = None,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> TextResult:
        """Answer `text` and wait for the answer; any number of threads may call this at the same time.

        A model with a chat template gets the text as a user's message, any other one continues it. `model` is an
        adapter's name, or None for the base model; temperature 0 is deterministic.

        Raises UnknownModelError, PromptError, ContextLengthError, QueueFullError, NotReadyError and EngineFailedError.
        """
        served = self.model(model)
        vocabulary = served.vocabulary
        prompt = (
            vocabulary.encode_chat([{"role": "user", "content": text}])
            if vocabulary.has_chat_template
            else vocabulary.encode(text)
        )
        request = TokenRequest(
            prompt=prompt,
            adapter=served.adapter_name,
            weights=served.weights,
            max_tokens=self.fit(prompt, max_tokens),
            sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
            stop_ids=vocabulary.stop_ids,
        )
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        tickets = self.submit([(request, events.put)])
        try:
            return _collect(events, Answer(vocabulary, stop), served.name, len(prompt))
        finally:
            self.cancel(tickets)

    def _require_loaded(self) -> None:
        if self._scheduler.ready:
            return
        raise NotReadyError(self.failure or "The model is still loading.")

    def _prepare(self) -> Engine:
        """Load everything, in the engine's own thread."""
        started = time.monotonic()
        path = Path(self.config.model.path)
        if path.is_absolute() and not path.is_dir():
            # Known at once; importing torch to find out takes seconds.
            raise ModelLoadError(f"base model {self.config.model.name}: there is no folder {path}")
        prefetch(path)
        engine = self._make_engine(self.config, self.settings)
        facts = engine.load_model()
        base = self._load_base(facts)
        models = {base.name: base}
        for served in self.config.adapters:
            try:
                models[served.name] = self._load_adapter(engine, served, models, facts)
            except AdapterRefusedError as error:
                # Its reason is the whole story; a stack trace would only hide it.
                log.warning("adapter %s refused: %s", served.name, error)
                self.refused[served.name] = str(error)
            except Exception as error:
                # A folder that others write to must not end the server, whatever is in it.
                log.exception("adapter %s refused", served.name)
                self.refused[served.name] = f"it cannot be loaded: {type(error).__name__}: {error}"
        _warm_up(engine, base.name)
        self._facts, self._models = facts, models
        log.info(
            "ready after %.1f s: %s with %d million parameters as %s on %s, %d adapters, %d refused",
            time.monotonic() - started,
            base.name,
            facts.parameters // 1_000_000,
            facts.dtype,
            facts.device,
            len(models) - 1,
            len(self.refused),
        )
        return engine

    def _load_base(self, facts: ModelFacts) -> ServedModel:
        wanted = self.config.model
        try:
            vocabulary = load_vocabulary(wanted.path, wanted.revision)
        except (OSError, ValueError) as error:
            raise ModelLoadError(
                f"base model {wanted.name} has no usable tokenizer at {wanted.path}: {error}"
            ) from error
        log.info("loaded base model %s: context of %d tokens", wanted.name, facts.context_length)
        return ServedModel(wanted.name, vocabulary, root=wanted.path)

    def _load_adapter(
        self, engine: Engine, served: ServedAdapter, models: dict[str, ServedModel], facts: ModelFacts
    ) -> ServedModel:
        """Load one adapter. Raises AdapterRefusedError or what nobody foresaw."""
        if served.name in models:
            raise AdapterRefusedError(f"the name {served.name!r} is already taken")
        adapter = verify(served)
        base = models[self.config.model.name]
        vocabulary = self._adapter_vocabulary(adapter) if adapter.has_tokenizer else base.vocabulary
        if vocabulary.size > facts.vocabulary_size:
            raise AdapterRefusedError(
                f"{adapter.directory} has a tokenizer of {vocabulary.size} tokens; the base model knows "
                f"{facts.vocabulary_size}"
            )
        weights = engine.load_adapter(adapter)
        log.info("loaded adapter %s (%s) from %s", served.name, adapter.digest, adapter.directory)
        return ServedModel(
            served.name, vocabulary, root=served.path, adapter=adapter, parent=base.name, weights=weights
        )

    def _adapter_vocabulary(self, adapter: VerifiedAdapter) -> Vocabulary:
        """The adapter's tokenizer; adapters with the same files share one."""
        files = [adapter.directory / name for name in TOKENIZER_FILES]
        key = tuple(sha256_of(file) if file.exists() else "" for file in files)
        if key not in self._vocabularies:
            try:
                self._vocabularies[key] = load_vocabulary(str(adapter.directory))
            except Exception as error:
                # Whatever a broken tokenizer file makes transformers raise, it concerns this adapter alone.
                raise AdapterRefusedError(f"{adapter.directory} has no usable tokenizer: {error}") from None
        return self._vocabularies[key]


def _transformers_engine(config: ServingConfig, settings: Settings) -> Engine:
    # Imported here: torch takes seconds, and probes have to be answered meanwhile.
    from finetune_inference.transformers_engine import TransformersEngine

    return TransformersEngine(config, settings)


def _warm_up(engine: Engine, name: str) -> None:
    """Generate one token: what is slow the first time happens now, and a model that computes nonsense is noticed.

    Raises ModelLoadError.
    """
    engine.add(-1, TokenRequest(prompt=[0, 0], adapter=None, max_tokens=1, logprobs=0, score_prompt=True))
    events: list[Event] = []
    while not any(isinstance(event, Finished | Failed) for event in events):
        events += [event for _, event in engine.step()]
    scores = [event.token.logprob for event in events if isinstance(event, Generated)]
    if any(score is None or not math.isfinite(score) for score in scores):
        raise ModelLoadError(f"base model {name} computes values that are not numbers; its weights are damaged")


def _collect(events: "queue.SimpleQueue[Event]", answer: Answer, model: str, prompt_tokens: int) -> TextResult:
    pieces = []
    while True:
        delta = answer.feed(events.get())
        pieces.append(delta.text)
        if delta.finish_reason:
            return TextResult("".join(pieces), delta.finish_reason, model, prompt_tokens, delta.completion_tokens)
