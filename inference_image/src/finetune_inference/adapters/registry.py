"""The names that requests can ask for, and what is behind each: the base model and versions of adapters.

Adapters come, go and are replaced while requests run. A request takes a `LoadedModel` once and keeps it: what it refers to
stays in memory until it has ended, whatever its name means by then. Whoever only reads sees the names before a change or
after it, never in between. Knows neither HTTP nor tensors.
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

log = logging.getLogger(__name__)

LoadWeights = Callable[[VerifiedAdapter], AdapterWeights | None]
"""`Engine.load_adapter`."""


class UnknownModelError(LookupError):
    """No such model, or an adapter that was refused; the message says which and why."""


@dataclass(frozen=True)
class LoadedModel:
    """What a name means at a moment."""

    name: str
    vocabulary: Vocabulary
    root: str
    """Where the weights are."""
    created: int
    """Unix seconds at which this version was first loaded."""
    adapter: VerifiedAdapter | None = None
    """None for the base model."""
    parent: str | None = None
    """Name of the base model; None for the base model itself."""
    weights: AdapterWeights | None = None
    """What the engine knows the adapter by; None for the base model, and for an adapter that is not in memory."""
    in_memory: bool = True
    """False for an adapter that made room for others; it is read again when somebody asks for it."""

    @property
    def adapter_name(self) -> str | None:
        """What requests for it take turns by."""
        return self.adapter.name if self.adapter else None

    @property
    def size_bytes(self) -> int:
        """Memory that the adapter takes."""
        return self.weights.size_bytes if self.weights else 0


class AdapterRegistry:
    """Names and what they mean. One thread at a time changes it; any thread reads."""

    def __init__(self, base: LoadedModel, vocabulary_size: int, load: LoadWeights, limits: Limits) -> None:
        """`base`: what the loaded weights are, a base model or an adapter that is merged into one.

        `vocabulary_size`: token ids that it knows.
        """
        self._base = base
        self._vocabulary_size = vocabulary_size
        self._load = load
        self._limits = limits
        self._changing = threading.Lock()
        self._models: dict[str, LoadedModel] = {base.name: base}
        self._asked: dict[str, ServedAdapter] = {}
        """What each loaded name was asked for as."""
        self._used: dict[str, float] = {}
        """Monotonic seconds at which somebody last asked for a name."""
        self._tried: dict[str, tuple[ServedAdapter, object]] = {}
        """What was refused, and what its folder looked like then."""
        self._vocabularies: WeakValueDictionary[tuple[str, ...], Vocabulary] = WeakValueDictionary()
        """By digests of the tokenizer's files: adapters with the same files share one."""
        self.refused: dict[str, str] = {}
        """Adapters, or versions of one, that are not served, and why."""

    def models(self) -> list[LoadedModel]:
        """The base model and the adapters."""
        return list(self._models.values())

    def get(self, name: str) -> LoadedModel:
        """What a name means now. Raises UnknownModelError."""
        models = self._models
        if name in models:
            self._used[name] = time.monotonic()
            return models[name]
        if name in self.refused:
            raise UnknownModelError(f"The adapter {name!r} is not served: {self.refused[name]}")
        if name == self._base.parent:
            raise UnknownModelError(
                f"The base model {name!r} is not served by itself: the adapter {self._base.name!r} is merged into its weights."
            )
        raise UnknownModelError(f"The model {name!r} does not exist; there are {', '.join(models)}.")

    def reload(self, name: str) -> LoadedModel:
        """The same with its weights in memory. Takes as long as loading an adapter. Raises UnknownModelError."""
        with self._changing:
            served = self.get(name)
            if served.in_memory or served.adapter is None:
                return served
            try:
                adapter = verify(self._asked[name].model_copy(update={"digest": served.adapter.digest}), self._limits)
                served = replace(served, weights=self._load(adapter), in_memory=True)
            except (AdapterRefusedError, OSError) as error:
                self._give_up(name, str(error))
                raise UnknownModelError(f"The adapter {name!r} is not served any more: {error}") from None
            self._publish({**self._models, name: served}, keep=name)
            return served

    def _give_up(self, name: str, reason: str) -> None:
        """Refuse an adapter that cannot be read again; `apply` tries it anew once its folder is there."""
        log.warning("adapter %s refused: %s", name, reason)
        # Nothing was tried of what is in the folder by now, so it counts as changed unless it is gone.
        self._tried[name] = (self._asked.pop(name), None)
        self.refused = {**self.refused, name: reason}
        self._models = {other: model for other, model in self._models.items() if other != name}

    def apply(self, wanted: Sequence[ServedAdapter]) -> None:
        """Serve exactly these adapters: load what is new or different, forget what is not there.

        An adapter that cannot be loaded is refused with its reason, and tried again when its folder changes; the version
        before it stays.
        """
        with self._changing:
            refused: dict[str, str] = {}
            before = self._models
            names = {served.name for served in wanted}
            self._publish({name: m for name, m in self._models.items() if m.adapter is None or name in names})
            done: set[str] = {self._base.name}
            for served in wanted:
                reason = (
                    f"the name {served.name!r} is already taken"
                    if served.name in done
                    else self._refresh(served, before)
                )
                done.add(served.name)
                if reason:
                    refused[served.name] = reason
            for name in self._asked.keys() - names:
                log.info("removed adapter %s", name)
                del self._asked[name]
            for name in [name for name in list(self._used) if name not in self._models]:
                self._used.pop(name, None)
            self._tried = {name: tried for name, tried in self._tried.items() if name in names}
            self.refused = refused

    def has_changed_folders(self) -> bool:
        """Whether there is a refused adapter whose folder looks different from when it was refused."""
        return any(_file_signature(served) != signature for served, signature in list(self._tried.values()))

    def _refresh(self, served: ServedAdapter, before: Mapping[str, LoadedModel]) -> str | None:
        """Load an adapter unless it is there already, or was `before` under another name; the reason if it is refused."""
        if self._asked.get(served.name) == served:
            self._tried.pop(served.name, None)
            return None
        signature: object = None
        try:
            signature = _file_signature(served)
            if self._tried.get(served.name) == (served, signature):
                return self.refused.get(served.name)
            model = _renamed(served, before) or self._read(served)
        except AdapterRefusedError as error:
            # Its reason is the whole story; a stack trace would only hide it.
            reason = str(error)
            log.warning("adapter %s refused: %s", served.name, reason)
        except Exception as error:
            # A folder that others write to must not end the server, whatever is in it.
            reason = f"it cannot be loaded: {type(error).__name__}: {error}"
            log.exception("adapter %s refused", served.name)
        else:
            self._tried.pop(served.name, None)
            self._asked[served.name] = served
            self._used[served.name] = time.monotonic()
            self._publish({**self._models, served.name: model}, keep=served.name)
            return None
        self._tried[served.name] = (served, signature)
        return reason

    def _read(self, served: ServedAdapter) -> LoadedModel:
        """Raises AdapterRefusedError or what nobody foresaw."""
        started = time.monotonic()
        adapter = verify(served, self._limits)
        vocabulary = self._vocabulary(adapter) if adapter.has_tokenizer else self._base.vocabulary
        if vocabulary.size > self._vocabulary_size:
            raise AdapterRefusedError(
                f"{adapter.directory} has a tokenizer of {vocabulary.size} tokens; the base model knows "
                f"{self._vocabulary_size}"
            )
        weights = self._load(adapter)
        seconds = time.monotonic() - started
        log.info("loaded adapter %s (%s) from %s in %.2f s", served.name, adapter.digest, adapter.directory, seconds)
        return LoadedModel(
            served.name,
            vocabulary,
            root=served.path,
            created=int(time.time()),
            adapter=adapter,
            parent=self._base.name,
            weights=weights,
        )

    def _publish(self, models: dict[str, LoadedModel], keep: str | None = None) -> None:
        """Make this what names mean, with those not in memory that were not asked for the longest, if it is too much."""
        while sum(model.size_bytes for model in models.values()) > self._limits.memory_bytes:
            idle = [name for name, model in models.items() if model.weights and name != keep]
            if not idle:
                break
            oldest = min(idle, key=lambda name: self._used.get(name, 0.0))
            log.info("adapter %s leaves memory to make room", oldest)
            models[oldest] = replace(models[oldest], weights=None, in_memory=False)
        self._models = models

    def _vocabulary(self, adapter: VerifiedAdapter) -> Vocabulary:
        files = [adapter.directory / name for name in TOKENIZER_FILES]
        key = tuple(sha256_of(file) if file.exists() else "" for file in files)
        known = self._vocabularies.get(key)
        if known is not None:
            return known
        try:
            return self._vocabularies.setdefault(key, load_vocabulary(str(adapter.directory)))
        except Exception as error:
            # Whatever a broken tokenizer file makes transformers raise, it concerns this adapter alone.
            raise AdapterRefusedError(f"{adapter.directory} has no usable tokenizer: {error}") from None


def _renamed(served: ServedAdapter, before: Mapping[str, LoadedModel]) -> LoadedModel | None:
    """The same version under its new name, if it is in memory: nothing needs to be read for that."""
    for model in before.values():
        if model.adapter is None or not model.in_memory or model.adapter.digest != served.digest:
            continue
        if model.root == served.path:
            return replace(model, name=served.name, adapter=replace(model.adapter, name=served.name))
    return None


def _file_signature(served: ServedAdapter) -> object:
    """What tells a folder from what it was before: the manifest is written last, and under a new name."""
    try:
        status = (Path(served.path) / MANIFEST_FILE).stat()
    except (OSError, ValueError):  # the latter for a path that no file can have
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
