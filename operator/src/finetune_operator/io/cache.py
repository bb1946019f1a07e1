"""Informer caches: the objects of one kind as the watch has shown them, projected to what decisions read.

An object is kept as compact JSON, so that ten thousand jobs fit into the memory of a small pod, and so that a reader gets a copy
of its own. Writes of this process are put in at once (`observe_write`), so a reconcile always sees what an earlier one wrote; the
watch's echo of them changes nothing and causes no reconcile.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.io.cluster import Cluster, Resource
from finetune_operator.kubernetes_types import Raw

Project = Callable[[Raw], Raw]
"""Return the parts of an object that decisions read. It must keep whatever it does not understand."""
Summarize = Callable[[Raw], Any]
"""Return facts that are kept beside the object, for readers of all objects."""
Notify = Callable[[Raw, bool], None]
"""Called with the metadata of an object that was added, changed or deleted, and whether that was a status of ours."""

DROPPED_ANNOTATION: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""A second copy of the object."""
MAX_REMEMBERED: Final = 10_000
"""Objects that are remembered to exist; then the memory starts anew."""


@dataclass(slots=True)
class Entry:
    """One object."""

    uid: str
    version: int
    """metadata.resourceVersion: comparable within a kind."""
    data: bytes
    """Projected object without its resourceVersion."""
    summary: Any


@dataclass(frozen=True)
class Kind:
    """How objects of a kind are kept."""

    resource: Resource
    selector: str = ""
    """Label selector of the watch."""
    owner_labels: tuple[str, ...] = ()
    """Labels by whose value objects are found; an object is found by the first that it has."""
    project: Project = dict
    summarize: Summarize = bool


class KindCache:
    """Objects of one kind. Not thread-safe."""

    def __init__(self, kind: Kind, notify: Notify) -> None:
        self.kind = kind
        self._notify = notify
        self._entries: dict[tuple[str, str], Entry] = {}
        self._owned: dict[tuple[str, str], tuple[str, ...]] = {}
        self._positions: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, namespace: str, name: str) -> Raw | None:
        """Return a copy of an object."""
        entry = self._entries.get((namespace, name))
        return None if entry is None else _load(entry)

    def owned(self, namespace: str, owner: str) -> list[Raw]:
        """Return copies of the objects whose owner label has this value."""
        return [_load(self._entries[namespace, name]) for name in self._owned.get((namespace, owner), ())]

    def all(self, namespace: str | None) -> list[Raw]:
        """Return copies of all objects, of one namespace or of all."""
        return [_load(entry) for (found, _), entry in self._entries.items() if namespace in (None, found)]

    def summaries(self) -> Iterator[tuple[str, str, str, Any]]:
        """Yield namespace, name, uid and summary of all objects."""
        for (namespace, name), entry in self._entries.items():
            yield namespace, name, entry.uid, entry.summary

    def owned_summaries(self, namespace: str, owner: str) -> Iterator[Any]:
        """Yield the summaries of the objects whose owner label has this value."""
        for name in self._owned.get((namespace, owner), ()):
            yield self._entries[namespace, name].summary

    def identity(self, namespace: str, name: str) -> tuple[str, Any] | None:
        """Return uid and summary of an object; None if there is none of that name."""
        entry = self._entries.get((namespace, name))
        return None if entry is None else (entry.uid, entry.summary)

    def put(self, raw: Raw, *, is_own_status: bool = False) -> None:
        """Keep an object that the API server has shown, unless it is older than what is known of its name."""
        metadata = raw["metadata"]
        namespace, name, uid = sys.intern(metadata["namespace"]), metadata["name"], metadata["uid"]
        version = version_of(metadata)
        known = self._entries.get((namespace, name))
        if known is not None and known.version >= version:
            return
        data = _dump(self.kind.project(raw))
        if known is not None and known.uid == uid and known.data == data:
            known.version = version
            return
        owner = owner_of(metadata, self.kind.owner_labels)
        if known is not None:
            self._forget_owner(namespace, name, known)
        self._entries[namespace, name] = Entry(uid, version, data, self.kind.summarize(raw))
        if owner:
            self._owned[namespace, owner] = (*self._owned.get((namespace, owner), ()), name)
        self._notify(metadata, is_own_status)

    def observe_write(self, raw: Raw, *, is_own_status: bool = False) -> None:
        """Keep the reply to a write of ours. If the watch is past it, it has shown the same, or the object's end."""
        metadata = raw["metadata"]
        if version_of(metadata) > self._position(metadata["namespace"]):
            self.put(raw, is_own_status=is_own_status)

    def remove(self, metadata: Raw) -> None:
        """Forget an object that was deleted. An older deletion of a namesake changes nothing."""
        namespace, name = metadata["namespace"], metadata["name"]
        known = self._entries.get((namespace, name))
        if known is not None and known.uid == metadata["uid"]:
            self._forget_owner(namespace, name, known)
            del self._entries[namespace, name]
            self._notify(metadata, False)

    def moved_to(self, scope: str | None, version: int) -> None:
        """Record how far the watch of a namespace, or of all, has come."""
        self._positions[scope or ""] = version

    def retain(self, scope: str | None, seen: set[str], version: int) -> None:
        """After a complete LIST at `version`: forget what it did not show and what no later write of ours brought."""
        for (namespace, name), entry in list(self._entries.items()):
            if scope in (None, namespace) and entry.uid not in seen and entry.version <= version:
                labels = _load(entry)["metadata"].get("labels")
                self.remove({"namespace": namespace, "name": name, "uid": entry.uid, "labels": labels})

    def _position(self, namespace: str) -> int:
        return self._positions.get(namespace, self._positions.get("", 0))

    def _forget_owner(self, namespace: str, name: str, entry: Entry) -> None:
        owner = owner_of(_load(entry)["metadata"], self.kind.owner_labels)
        left = tuple(other for other in self._owned.get((namespace, owner), ()) if other != name)
        if left:
            self._owned[namespace, owner] = left
        else:
            self._owned.pop((namespace, owner), None)


class Cache:
    """Caches of several kinds, with the reads of `Cluster`; kinds that are not kept are read from the API server."""

    def __init__(
        self, cluster: Cluster, kinds: Mapping[Resource, KindCache], remembered: Mapping[Resource, float]
    ) -> None:
        """Remember that an object of a kind in `remembered` exists for so many seconds after it was read."""
        self._cluster = cluster
        self._kinds = kinds
        self._remembered = remembered
        self._seen: dict[tuple[Resource, str, str], float] = {}
        cluster.on_written = self._observe_write

    async def get(self, resource: Resource, namespace: str, name: str) -> Raw | None:
        """Return one object; None if it does not exist."""
        kept = self._kinds.get(resource)
        found = kept.get(namespace, name) if kept is not None else None
        # An object without our labels is not mirrored, and may still have the name.
        if kept is not None and (found is not None or not kept.kind.selector):
            return found
        key, now = (resource, namespace, name), time.monotonic()
        if resource in self._remembered and now - self._seen.get(key, -math.inf) < self._remembered[resource]:
            return {"metadata": {"namespace": namespace, "name": name}}
        raw = await self._cluster.get(resource, namespace, name)
        if raw is not None and resource in self._remembered:
            if len(self._seen) >= MAX_REMEMBERED:
                self._seen.clear()
            self._seen[key] = now
        return raw

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> list[Raw]:
        """Return all objects that match a label selector of the form `key=value,...`."""
        kept = self._kinds.get(resource)
        if kept is None:
            return await self._cluster.list(resource, namespace, selector)
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        owner = next((wanted[label] for label in kept.kind.owner_labels if label in wanted), "")
        found = kept.owned(namespace, owner) if owner and namespace is not None else kept.all(namespace)
        return [raw for raw in found if wanted.items() <= labels_of(raw["metadata"]).items()]

    async def refresh(self, resource: Resource, namespace: str, name: str) -> None:
        """Read one object from the API server, because a write has shown that the cache is behind."""
        kept = self._kinds.get(resource)
        if kept is None:
            return
        raw = await self._cluster.get(resource, namespace, name)
        if raw is not None:
            kept.observe_write(raw)
        elif (found := kept.identity(namespace, name)) is not None:
            kept.remove({"namespace": namespace, "name": name, "uid": found[0]})

    def _observe_write(self, resource: Resource, raw: Raw, is_status: bool) -> None:
        kept = self._kinds.get(resource)
        if kept is not None:
            kept.observe_write(raw, is_own_status=is_status)


def labels_of(metadata: Raw) -> Mapping[str, str]:
    """Return the labels that are texts."""
    labels = metadata.get("labels")
    if not isinstance(labels, dict):
        return {}
    return {key: value for key, value in labels.items() if isinstance(value, str)}


def owner_of(metadata: Raw, owner_labels: tuple[str, ...]) -> str:
    """Return the value of the first owner label; empty without one."""
    labels = labels_of(metadata)
    return next((labels[label] for label in owner_labels if label in labels), "")


def version_of(metadata: Raw) -> int:
    """Return the resourceVersion as a number. Kubernetes promises since 1.35 that it is one, and grows within a kind."""
    text = metadata.get("resourceVersion", "")
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def without_noise(raw: Raw) -> Raw:
    """Return the object without managed fields and without the copy of itself that kubectl keeps in it."""
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict) and DROPPED_ANNOTATION in annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != DROPPED_ANNOTATION}
    return {**raw, "metadata": metadata}


def _dump(raw: Raw) -> bytes:
    metadata = {key: value for key, value in raw["metadata"].items() if key != "resourceVersion"}
    return json.dumps({**raw, "metadata": metadata}, ensure_ascii=False, separators=(",", ":")).encode()


def _load(entry: Entry) -> Raw:
    raw: Raw = json.loads(entry.data)
    raw["metadata"]["resourceVersion"] = str(entry.version)
    return raw
