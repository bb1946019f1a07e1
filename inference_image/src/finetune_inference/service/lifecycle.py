"""The server from loading to its end: the engine in its thread, and readiness."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune_api.serving import ServingConfig
from finetune_inference.adapters.registry import AdapterRegistry
from finetune_inference.adapters.verification import Limits
from finetune_inference.backends.common.prefetch import prefetch
from finetune_inference.backends.engines import MakeEngine
from finetune_inference.config import Settings
from finetune_inference.engine.interface import Engine, ModelFacts, ModelLoadError
from finetune_inference.engine.scheduler import Scheduler
from finetune_inference.service.base_model import identity_of, load_base, load_merged, warm_up
from finetune_inference.service.model_registry import ModelRegistry

log = logging.getLogger(__name__)

ADAPTER_MEMORY_SHARE = 8
"""Adapters get one part in this many of the memory beside the model, unless a setting gives the number of bytes."""
LEAST_ADAPTER_MEMORY = 64 << 20
"""Fewest bytes for adapters, even in a pod with a tight memory limit."""


class NotReadyError(RuntimeError):
    """The model is still loading, or cannot be served; the message says which."""


class ServerLifecycle:
    """Loads the engine and the models in the engine's thread, and ends them."""

    def __init__(
        self, config: ServingConfig, settings: Settings, make_engine: MakeEngine, models: ModelRegistry
    ) -> None:
        self.created = int(time.time())
        """Unix seconds."""
        self.draining = False
        """True when the process is about to end: not ready any more, but still answering."""
        self._config = config
        self._settings = settings
        self._make_engine = make_engine
        self._models = models
        self._facts: ModelFacts | None = None
        self.scheduler = Scheduler(
            self._prepare, max_waiting=settings.max_waiting, timeout=settings.request_timeout_seconds
        )

    def start(self) -> None:
        """Start to load in the background. Call once."""
        self.scheduler.start()

    def wait_loaded(self) -> None:
        """Wait until the first token was generated. Raises ModelLoadError."""
        self.scheduler.wait_prepared()

    def close(self) -> None:
        """End the engine's thread; unfinished requests fail."""
        self._models.close()
        self.scheduler.stop(timeout=5.0)

    @property
    def ready(self) -> bool:
        """True while requests are answered and the process is not about to end."""
        return self.scheduler.ready and not self.draining

    @property
    def failure(self) -> str | None:
        """Reason why nothing can be served any more; None while the server loads or serves."""
        return str(self.scheduler.failure) if self.scheduler.failure else None

    @property
    def facts(self) -> ModelFacts:
        """Properties of the base model. Raises NotReadyError."""
        self.require_loaded()
        assert self._facts is not None  # noqa: S101 - set before the scheduler is ready
        return self._facts

    def require_loaded(self) -> None:
        """Raise NotReadyError unless the model is loaded and the engine runs."""
        if not self.scheduler.ready:
            raise NotReadyError(self.failure or "The model is still loading.")

    def _prepare(self) -> Engine:
        """Load everything, in the engine's thread."""
        started = time.monotonic()
        path = Path(self._config.model.path)
        if path.is_absolute() and not path.is_dir():
            # Checked first, because importing torch takes seconds.
            raise ModelLoadError(f"base model {self._config.model.name}: folder {path} does not exist")
        prefetch(path)
        # Beside the import of torch, which takes longer and uses one thread.
        hashing = ThreadPoolExecutor(max_workers=1).submit(identity_of, self._config.model)
        engine = self._make_engine(self._config, self._settings)
        if self._config.merge_adapter:
            entry, limits = self._config.adapters[0], adapter_limits(self._settings, engine)
            facts, base = load_merged(engine, self._config.model, entry, limits, hashing.result(), self.created)
        else:
            facts, base = load_base(engine, self._config.model, self.created)
        loaded = AdapterRegistry(
            base,
            facts.vocabulary_size,
            engine.load_adapter,
            adapter_limits(self._settings, engine),
            hashing.result(),
        )
        self._models.load_adapters(loaded)
        warm_up(engine, base.name)
        self._facts = facts
        self._models.publish(loaded)
        log.info(
            "Ready after %.1f s: %s with %d million parameters as %s on %s, %d adapters, %d refused",
            time.monotonic() - started,
            base.name,
            facts.parameters // 1_000_000,
            facts.dtype,
            facts.device,
            len(loaded.models()) - 1,
            len(loaded.refused),
        )
        return engine


def adapter_limits(settings: Settings, engine: Engine) -> Limits:
    """Return the limits for adapters, from the settings or the engine's free memory."""
    share = max(LEAST_ADAPTER_MEMORY, engine.spare_memory // ADAPTER_MEMORY_SHARE)
    return Limits(settings.max_lora_rank, settings.adapter_memory_bytes or share)
