"""`InferenceService`: a base model and its adapters, loaded and ready to process text.

It knows nothing of HTTP, so that any program can use it. In your own FastAPI application:

    from finetune_inference.config import standalone_config
    from finetune_inference.inference import InferenceService

    service = InferenceService(standalone_config("/models/smollm2", {"support-tone": "/adapters/support-tone"}))

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        service.start()  # loads in a background thread; then `service.ready` is true
        yield
        service.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/answer")
    def answer(text: Annotated[str, Body()]) -> str:  # a plain def, because FastAPI runs it in a thread that may wait
        return service.process_text(text, model="support-tone").text

`finetune_inference.api.app` is the OpenAI-compatible application around the same service. The work is done by the three
objects of `finetune_inference.service`: lifecycle, model registry and generator.
"""

from collections.abc import Sequence

from finetune_api.serving import ServingConfig
from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.backends.engines import ENGINES, MakeEngine
from finetune_inference.config import Settings
from finetune_inference.engine.interface import ModelFacts, Sampling, TokenRequest
from finetune_inference.engine.scheduler import Listener, Ticket
from finetune_inference.service.generator import ContextLengthError, Generator, TextResult
from finetune_inference.service.lifecycle import NotReadyError, ServerLifecycle
from finetune_inference.service.model_registry import ModelRegistry

__all__ = ["ContextLengthError", "InferenceService", "NotReadyError", "TextResult"]


class InferenceService:
    """Loads a base model with adapters and processes text with it."""

    def __init__(
        self, config: ServingConfig, settings: Settings | None = None, make_engine: MakeEngine | None = None
    ) -> None:
        self.config = config
        self.settings = settings or Settings()
        self._models = ModelRegistry(config, self.settings)
        make_engine = make_engine or ENGINES[self.settings.engine]
        self._server = ServerLifecycle(config, self.settings, make_engine, self._models)
        self._generator = Generator(self.settings, self._server)

    def start(self) -> None:
        """Start to load in the background; then `ready` is true. Call once."""
        self._server.start()

    def load(self) -> None:
        """Load, and wait until a first token was generated. Raises ModelLoadError if the base model cannot be served.

        An adapter that is refused does not raise: see `refused`.
        """
        self.start()
        self.wait_loaded()

    def wait_loaded(self) -> None:
        """Wait for the loading that `start` began. Raises as `load` does."""
        self._server.wait_loaded()

    def close(self) -> None:
        """End the engine's thread; unfinished requests fail."""
        self._server.close()

    @property
    def created(self) -> int:
        """Unix seconds at which this service was made."""
        return self._server.created

    @property
    def draining(self) -> bool:
        """True when the process is about to end: not ready any more, but still answering. Set by the process."""
        return self._server.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._server.draining = value

    @property
    def ready(self) -> bool:
        """True while requests are answered and the process is not about to end."""
        return self._server.ready

    @property
    def failure(self) -> str | None:
        """Reason why nothing can be served any more; None while the service loads or serves."""
        return self._server.failure

    @property
    def waiting(self) -> int:
        """Number of sequences in the waiting queue."""
        return self._server.scheduler.waiting

    @property
    def running(self) -> int:
        """Number of running sequences."""
        return self._server.scheduler.running

    @property
    def cached_tokens(self) -> int:
        """Tokens reserved in the KV cache."""
        return self._server.scheduler.cached_tokens

    @property
    def facts(self) -> ModelFacts:
        """Properties of the base model. Raises NotReadyError."""
        return self._server.facts

    def models(self) -> list[LoadedModel]:
        """Return the base model and the adapters. Raises NotReadyError."""
        self._server.require_loaded()
        return self._models.models()

    def model(self, name: str | None = None) -> LoadedModel:
        """Resolve a model name; None is the base model, or the adapter merged into it.

        An adapter that is not `in_memory` needs `reload` before a request. Raises NotReadyError or UnknownModelError.
        """
        self._server.require_loaded()
        return self._models.get(name)

    def reload(self, name: str) -> LoadedModel:
        """Load an evicted adapter into memory again, which takes as long as loading it. Raises as `model` does."""
        self._server.require_loaded()
        return self._models.reload(name)

    def promote(self, candidate: str, token: str, digest: str | None = None) -> None:
        """Serve a candidate by its adapter's own name from now on, as the next adapter list will say.

        `digest`, if known, is that of the verified version; a folder that was replaced may hold another version here.
        Raises NotReadyError, UnknownModelError, WrongTokenError, or NotPromotedError if the version cannot be served by that name.
        """
        self._server.require_loaded()
        self._models.promote(candidate, token, digest)

    @property
    def adapter_list_problem(self) -> str | None:
        """Reason why the adapter list cannot be used; the adapters before it are still served."""
        return self._models.adapter_list_problem

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by name of the adapters, or versions of one, that are not served."""
        return self._models.refused

    @property
    def adapter_bytes(self) -> int:
        """Memory of the loaded adapters, in bytes."""
        return self._models.adapter_bytes

    def fit(self, prompt: Sequence[int], max_tokens: int | None) -> int:
        """Return the most tokens of the answer: `max_tokens` or, for None, the free context. Raises ContextLengthError."""
        return self._generator.fit(prompt, max_tokens)

    def require_room(self) -> None:
        """Raise QueueFullError if the waiting queue is full, before work is spent on a request."""
        self._generator.require_room()

    def submit(self, sequences: Sequence[tuple[TokenRequest, Listener]]) -> list[Ticket]:
        """Queue all sequences or none; their events arrive at the listeners from another thread.

        Raises NotReadyError or QueueFullError.
        """
        return self._generator.submit(sequences)

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Cancel sequences; completed ones are ignored."""
        self._generator.cancel(tickets)

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

        A model with a chat template gets the text as a user's message; any other model continues the text. `model` is an
        adapter's name, or None for the base model. With temperature 0 answers are deterministic.

        Raises UnknownModelError, PromptError, ContextLengthError, QueueFullError, NotReadyError,
        EngineFailedError and AnswerTimeoutError, and ValueError for a seed that is not a signed 64-bit integer.
        """
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise ValueError(f"the seed {seed} is not a signed 64-bit integer")
        served = self.model(model)
        served = served if served.in_memory else self.reload(served.name)
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        return self._generator.process_text(text, served, max_tokens=max_tokens, sampling=sampling, stop=stop)
