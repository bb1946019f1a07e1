"""The registry of model names: the base model, and one version of each adapter.

Adapters are added, removed and replaced while requests run. A request resolves its model once and keeps that `LoadedModel`,
whose weights stay in memory until the request ends, even if the name means another version by then. Readers see the registry
before or after a change, never in between. Knows neither HTTP nor tensors.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

from finetune_api.artifacts import MANIFEST_FILE, sha256_of
from finetune_api.serving import ServedAdapter
from finetune_inference.adapters.verification import TOKENIZER_FILES, AdapterRefusedError, Limits, verify
from finetune_inference.engine.interface import AdapterWeights, VerifiedAdapter
from finetune_inference.text.vocabulary import Vocabulary, load_vocabulary
from finetune_model.base_digest import BaseIdentity

log = logging.getLogger(__name__)

LoadWeights = Callable[[VerifiedAdapter], AdapterWeights | None]
"""`Engine.load_adapter`."""


class UnknownModelError(LookupError):
    """The model does not exist, or its adapter was refused; the message says which, and why."""


@dataclass(frozen=True)
class LoadedModel:
    """Model behind a name at one moment."""

    name: str
    vocabulary: Vocabulary
    root: str
    """Path of the weights."""
    created: int
    """Unix seconds at which this version was first loaded."""
    adapter: VerifiedAdapter | None = None
    """None for the base model."""
    parent: str | None = None
    """Name of the base model; None for the base model itself."""
    weights: AdapterWeights | None = None
    """The engine's handle of the adapter; None for the base model, and for an adapter that is not in memory."""
    in_memory: bool = True
    """False for an evicted adapter, which is loaded again for its next request."""

    @property
    def adapter_name(self) -> str | None:
        """Name by which the waiting queue takes turns; None for the base model."""
        return self.adapter.name if self.adapter else None

    @property
    def size_bytes(self) -> int:
        """Memory of the adapter, in bytes."""
        return self.weights.size_bytes if self.weights else 0


class AdapterRegistry:
    """Loaded models by name. One thread at a time changes it; any thread reads."""

    def __init__(
        self,
        base: LoadedModel,
        vocabulary_size: int,
        load: LoadWeights,
        limits: Limits,
        identity: BaseIdentity | None = None,
    ) -> None:
        """Start with the base model alone.

        `base`: the loaded weights, a base model or an adapter that is merged into one. `vocabulary_size`: its number of token ids.
        `identity`: of the base model's files.
        """
        self._base = base
        self._vocabulary_size = vocabulary_size
        self._load = load
        self._limits = limits
        self._identity = identity
        self._changing = threading.Lock()
        self._models: dict[str, LoadedModel] = {base.name: base}
        self._entries: dict[str, ServedAdapter] = {}
        """Entry from which each adapter was loaded."""
        self._last_used: dict[str, float] = {}
        """Monotonic seconds of the latest request by name."""
        self._refused_entries: dict[str, tuple[ServedAdapter, object]] = {}
        """Entry of each refused adapter, with the signature of its folder at that time."""
        self._vocabularies: WeakValueDictionary[tuple[str, ...], Vocabulary] = WeakValueDictionary()
        """By digests of the tokenizer's files and the chat settings, because adapters with equal files share one."""
        self.refused: dict[str, str] = {}
        """Reasons by name of the adapters, or versions of one, that are not served."""

    def models(self) -> list[LoadedModel]:
        """Return the base model and the adapters."""
        return list(self._models.values())

    def get(self, name: str) -> LoadedModel:
        """Resolve a model name. Raises UnknownModelError."""
        models = self._models
        if name in models:
            self._last_used[name] = time.monotonic()
            return models[name]
        if name in self.refused:
            raise UnknownModelError(f"The adapter {name!r} is not served: {self.refused[name]}")
        if name == self._base.parent:
            raise UnknownModelError(
                f"The base model {name!r} is not served: the adapter {self._base.name!r} is merged into its weights."
            )
        raise UnknownModelError(f"The model {name!r} does not exist. Available: {', '.join(models)}.")

    def reload(self, name: str) -> LoadedModel:
        """Load an evicted adapter into memory again, which takes as long as loading it. Raises UnknownModelError."""
        with self._changing:
            served = self.get(name)
            if served.in_memory or served.adapter is None:
                return served
            try:
                adapter = self._verify(self._entries[name].model_copy(update={"digest": served.adapter.digest}))
                served = replace(served, weights=self._load(adapter), in_memory=True)
            except (AdapterRefusedError, OSError) as error:
                self._refuse_loaded(name, str(error))
                raise UnknownModelError(f"The adapter {name!r} is not served any more: {error}") from None
            self._publish({**self._models, name: served}, keep=name)
            return served

    def _refuse_loaded(self, name: str, reason: str) -> None:
        """Refuse an adapter that cannot be loaded again; `apply` retries it once its folder exists."""
        log.warning("Refused adapter %s: %s", name, reason)
        # No signature, so that an existing folder counts as changed and is tried again.
        self._refused_entries[name] = (self._entries.pop(name), None)
        self.refused = {**self.refused, name: reason}
        self._models = {other: model for other, model in self._models.items() if other != name}

    def apply(self, wanted: Sequence[ServedAdapter]) -> None:
        """Serve exactly these adapters: load new and changed ones, remove the others.

        An adapter that cannot be loaded is refused with a reason and retried when its folder changes; its previous version
        stays.
        """
        with self._changing:
            refused: dict[str, str] = {}
            before = self._models
            names = {entry.name for entry in wanted}
            self._publish({name: m for name, m in self._models.items() if m.adapter is None or name in names})
            seen: set[str] = {self._base.name}
            for entry in wanted:
                reason = (
                    f"the name {entry.name!r} is already taken" if entry.name in seen else self._refresh(entry, before)
                )
                seen.add(entry.name)
                if reason:
                    refused[entry.name] = reason
            for name in self._entries.keys() - names:
                log.info("Removed adapter %s", name)
                del self._entries[name]
            for name in [name for name in list(self._last_used) if name not in self._models]:
                self._last_used.pop(name, None)
            self._refused_entries = {name: refusal for name, refusal in self._refused_entries.items() if name in names}
            self.refused = refused

    def has_changed_folders(self) -> bool:
        """Return whether the folder of a refused adapter changed since the refusal."""
        return any(_folder_signature(entry) != signature for entry, signature in list(self._refused_entries.values()))

    def _refresh(self, entry: ServedAdapter, before: Mapping[str, LoadedModel]) -> str | None:
        """Load an adapter unless it is loaded, or was `before` under another name. Returns the reason if it is refused."""
        if self._entries.get(entry.name) == entry:
            self._refused_entries.pop(entry.name, None)
            return None
        signature: object = None
        try:
            signature = _folder_signature(entry)
            if self._refused_entries.get(entry.name) == (entry, signature):
                return self.refused.get(entry.name)
            model = _renamed(entry, before) or self._read(entry)
        except AdapterRefusedError as error:
            # The reason is complete; a stack trace would hide it.
            reason = str(error)
            log.warning("Refused adapter %s: %s", entry.name, reason)
        except Exception as error:
            # Other pods write to the folder, so no content may end the server.
            reason = f"it cannot be loaded: {type(error).__name__}: {error}"
            log.exception("Refused adapter %s", entry.name)
        else:
            self._refused_entries.pop(entry.name, None)
            self._entries[entry.name] = entry
            self._last_used[entry.name] = time.monotonic()
            self._publish({**self._models, entry.name: model}, keep=entry.name)
            return None
        self._refused_entries[entry.name] = (entry, signature)
        return reason

    def _read(self, entry: ServedAdapter) -> LoadedModel:
        """Verify and load an adapter. Raises AdapterRefusedError, or any exception of a defect."""
        started = time.monotonic()
        adapter = self._verify(entry)
        vocabulary = self._vocabulary(adapter)
        if beyond := [token for token in adapter.chat.end_tokens if not 0 <= token < self._vocabulary_size]:
            raise AdapterRefusedError(
                f"{adapter.directory} has the end token {beyond[0]}; the base model has {self._vocabulary_size} tokens"
            )
        weights = self._load(adapter)
        seconds = time.monotonic() - started
        log.info("Loaded adapter %s (%s) from %s in %.2f s", entry.name, adapter.digest, adapter.directory, seconds)
        return LoadedModel(
            entry.name,
            vocabulary,
            root=entry.path,
            created=int(time.time()),
            adapter=adapter,
            parent=self._base.name,
            weights=weights,
        )

    def _verify(self, entry: ServedAdapter) -> VerifiedAdapter:
        return verify(entry, self._limits, self._identity)

    def _publish(self, models: dict[str, LoadedModel], keep: str | None = None) -> None:
        """Replace the registry. Evict the least recently used adapters when the total exceeds the memory budget."""
        while sum(model.size_bytes for model in models.values()) > self._limits.memory_bytes:
            idle = [name for name, model in models.items() if model.weights and name != keep]
            if not idle:
                break
            oldest = min(idle, key=lambda name: self._last_used.get(name, 0.0))
            log.info("Evicted adapter %s from memory", oldest)
            models[oldest] = replace(models[oldest], weights=None, in_memory=False)
        self._models = models

    def _vocabulary(self, adapter: VerifiedAdapter) -> Vocabulary:
        if not adapter.has_tokenizer:
            return self._base.vocabulary.with_settings(adapter.chat)
        files = [adapter.directory / name for name in TOKENIZER_FILES]
        key = (*(sha256_of(file) if file.exists() else "" for file in files), repr(adapter.chat))
        known = self._vocabularies.get(key)
        if known is not None:
            return known
        try:
            return self._vocabularies.setdefault(key, load_vocabulary(str(adapter.directory), None, adapter.chat))
        except Exception as error:
            # transformers raises various exceptions for broken tokenizer files; they concern this adapter alone.
            raise AdapterRefusedError(f"{adapter.directory} has no usable tokenizer: {error}") from None


def _renamed(entry: ServedAdapter, before: Mapping[str, LoadedModel]) -> LoadedModel | None:
    """Return the same version under its new name if it is in memory, so that nothing has to be read."""
    for model in before.values():
        if model.adapter is None or not model.in_memory or model.adapter.digest != entry.digest:
            continue
        if model.root == entry.path:
            return replace(model, name=entry.name, adapter=replace(model.adapter, name=entry.name))
    return None


def _folder_signature(entry: ServedAdapter) -> object:
    """Return a value that differs after a change of the folder, whose manifest is written last and then renamed."""
    try:
        status = (Path(entry.path) / MANIFEST_FILE).stat()
    except (OSError, ValueError):  # ValueError for a path that is not valid
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
