"""The models to serve: from the configuration, from the adapter list that may change, and from promotions."""

import logging
import threading

from finetune_api.serving import ServingConfig
from finetune_inference.adapters.adapter_list import AdapterListError, Watcher, read_adapter_list
from finetune_inference.adapters.promotion import ListedAdapters, NotPromotedError
from finetune_inference.adapters.registry import AdapterRegistry, LoadedModel, UnknownModelError
from finetune_inference.config import Settings

log = logging.getLogger(__name__)


class ModelRegistry:
    """Keeps the loaded adapters equal to the configuration, the adapter list and the promotions. Any thread may use it."""

    def __init__(self, config: ServingConfig, settings: Settings) -> None:
        self.adapter_list_problem: str | None = None
        """Reason why the adapter list cannot be used; the adapters before it are still served."""
        self._config = config
        self._settings = settings
        self._loaded: AdapterRegistry | None = None
        self._watcher: Watcher | None = None
        self._listed = ListedAdapters()
        self._applying = threading.Lock()
        """Held from reading or changing the list until it is applied, so that an older list is never applied last."""

    @property
    def default_name(self) -> str:
        """Name of the base model, or of the adapter that is merged into it."""
        return self._config.adapters[0].name if self._config.merge_adapter else self._config.model.name

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by name of the adapters, or versions of one, that are not served."""
        return self._loaded.refused if self._loaded else {}

    @property
    def adapter_bytes(self) -> int:
        """Memory of the loaded adapters, in bytes."""
        return sum(model.size_bytes for model in self._loaded.models()) if self._loaded else 0

    def load_adapters(self, loaded: AdapterRegistry) -> None:
        """Load the wanted adapters into a registry that has the base model."""
        # Made before the list is read, so that a change in between is noticed.
        self._watcher = Watcher(
            self._settings.adapters_path,
            self._settings.adapters_poll_seconds,
            lambda: self._apply_list(loaded),
            loaded.has_changed_folders,
        )
        self._apply_list(loaded)

    def publish(self, loaded: AdapterRegistry) -> None:
        """Answer with the models of `loaded` from now on, and follow changes of the list."""
        self._loaded = loaded
        if self._watcher:
            self._watcher.start()

    def close(self) -> None:
        """Stop watching the list."""
        if self._watcher:
            self._watcher.stop()

    def models(self) -> list[LoadedModel]:
        """Return the base model and the adapters."""
        return self._require_loaded().models()

    def get(self, name: str | None = None) -> LoadedModel:
        """Resolve a model name; None is the default. Raises UnknownModelError."""
        return self._require_loaded().get(name or self.default_name)

    def reload(self, name: str) -> LoadedModel:
        """Load an evicted adapter into memory again. Raises UnknownModelError."""
        return self._require_loaded().reload(name)

    def promote(self, candidate: str, token: str, digest: str | None) -> None:
        """Serve a candidate by its adapter's own name. Raises as `InferenceService.promote`."""
        loaded = self._require_loaded()
        with self._applying:
            adapter = loaded.get(candidate).adapter
            if adapter and digest not in (None, adapter.digest):
                raise UnknownModelError(
                    f"The candidate {candidate!r} has digest {adapter.digest} here; {digest} was to be promoted."
                )
            name = self._listed.promote(candidate, token, adapter.digest if adapter else None)
            problem = self._apply(loaded)
            # Keeps the reason of a list that became unreadable in the meantime.
            self.adapter_list_problem = problem or self.adapter_list_problem
            problem = problem or loaded.refused.get(name)
        if problem:
            raise NotPromotedError(f"The candidate {candidate!r} cannot be served as {name!r}: {problem}")
        log.info("Promoted %s to %s", candidate, name)

    def _require_loaded(self) -> AdapterRegistry:
        assert self._loaded is not None  # noqa: S101 - callers check that the server is ready
        return self._loaded

    def _apply_list(self, loaded: AdapterRegistry) -> None:
        """Serve the adapters of the configuration and of the list; with a merged adapter, no others."""
        with self._applying:
            try:
                listed = read_adapter_list(self._settings.adapters_path)
            except AdapterListError as error:
                # An unreadable list must not remove adapters that clients use.
                log.error("The adapters stay unchanged: %s", error)  # noqa: TRY400 - a sentence, not a stack trace
                self.adapter_list_problem = str(error)
                return
            if self._config.merge_adapter:
                names = ", ".join(entry.name for entry in listed)
                self.adapter_list_problem = (
                    f"{self._settings.adapters_path} lists {names}, which cannot be served, because {self.default_name} is merged "
                    "into the weights (mergeAdapter). Empty the list, or set mergeAdapter to false."
                    if listed
                    else None
                )
                return
            self._listed.update(listed)
            self.adapter_list_problem = self._apply(loaded)

    def _apply(self, loaded: AdapterRegistry) -> str | None:
        """Load and unload adapters so that exactly the wanted ones are served; returns the reason of a failure."""
        listed = self._listed.wanted
        names = {entry.name for entry in listed}
        try:
            loaded.apply([*(entry for entry in self._config.adapters if entry.name not in names), *listed])
        except Exception as error:
            # A list must stop neither the start nor the models that are served.
            log.exception("The adapters could not be applied")
            return f"the adapters could not be applied: {type(error).__name__}: {error}"
        return None
