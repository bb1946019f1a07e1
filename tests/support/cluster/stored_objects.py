"""The verbs of `io.cluster.Cluster` on objects in memory, for one pass at a time; each write is noted in order."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import BY_KIND, FIELD_MANAGER, Resource

Raw = dict[str, Any]


class StoredObjects:
    """Objects by plural and name, all in one namespace. Selectors match labels, as everywhere."""

    def __init__(self, *objects: Raw) -> None:
        self.objects: dict[tuple[str, str], Raw] = {}
        self.writes: list[Any] = []
        """Verb, then what it names: plural and name, and the precondition or content that the verb has."""
        self.events: list[Raw] = []
        self.reads: list[tuple[str, str]] = []
        self.refusals: dict[str, int] = {}
        """HTTP status by kind of the children that are refused."""
        for raw in objects:
            self.put(raw)

    def put(self, raw: Raw, plural: str | None = None) -> None:
        """Store an object as it is."""
        self.objects[plural or BY_KIND[raw["kind"]].plural, raw["metadata"]["name"]] = raw

    async def get(self, resource: Resource, _namespace: str, name: str) -> Raw | None:
        self.reads.append((resource.plural, name))
        return deepcopy(self.objects.get((resource.plural, name)))

    async def list(self, resource: Resource, _namespace: str | None, selector: str = "") -> list[Raw]:
        wanted = dict(pair.split("=") for pair in selector.split(",") if pair)
        found = [raw for (plural, _), raw in self.objects.items() if plural == resource.plural]
        return [deepcopy(raw) for raw in found if wanted.items() <= (raw["metadata"].get("labels") or {}).items()]

    async def create(self, manifest: Raw) -> Raw | None:
        self._refuse("create", manifest)
        if (BY_KIND[manifest["kind"]].plural, manifest["metadata"]["name"]) in self.objects:
            return None
        self.writes.append(("create", *_name(manifest)))
        self.put(manifest)
        return manifest

    async def apply(self, manifest: Raw, manager: str = FIELD_MANAGER) -> Raw:
        self._refuse("apply", manifest)
        self.writes.append(("apply", *_name(manifest), manager))
        if manager == FIELD_MANAGER:
            self.put(manifest)
        return manifest

    async def delete(self, resource: Resource, _namespace: str, name: str, uid: str) -> None:
        self.writes.append(("delete", resource.plural, name, uid))

    async def annotate(
        self, resource: Resource, _namespace: str, name: str, uid: str, annotations: Mapping[str, str]
    ) -> None:
        self.writes.append(("annotate", resource.plural, name, uid, dict(annotations)))

    async def patch_condition(
        self, resource: Resource, _namespace: str, name: str, uid: str, resource_version: str, condition: Raw
    ) -> None:
        what = (uid, resource_version, condition["type"], condition["status"])
        self.writes.append(("patch_condition", resource.plural, name, *what))

    async def patch_status(self, resource: Resource, metadata: Raw, status: Raw) -> bool:
        self.writes.append(("patch_status", resource.plural, metadata["name"]))
        raw = self.objects[resource.plural, metadata["name"]]
        raw["status"] = _merged(raw.get("status") or {}, status)
        return True

    async def create_event(self, _namespace: str, event: Raw) -> None:
        self.events.append(event)

    def _refuse(self, verb: str, manifest: Raw) -> None:
        if status := self.refusals.get(manifest["kind"]):
            raise ClusterError(verb, " ".join(_name(manifest)), status, "a policy forbids it")


def _name(manifest: Raw) -> tuple[str, str]:
    return BY_KIND[manifest["kind"]].plural, manifest["metadata"]["name"]


def _merged(old: Raw, patch: Raw) -> Raw:
    """RFC 7386."""
    result = {key: value for key, value in old.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, dict):
            before = result.get(key)
            result[key] = _merged(before if isinstance(before, dict) else {}, value)
        elif value is not None:
            result[key] = value
    return result
