"""The cluster's API over files: the operator's door to the API server, opened to a folder of this machine.

The reconcilers of the operator read and write here what they read and write on a cluster. As there, each write gives an object
another resourceVersion, a status decided on an older one is refused, and what an object owns is deleted with it.
"""

import builtins
import copy
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from finetune_api.v1alpha1.common import metav1_time
from finetune_cli.local.folders import Folders
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import BY_KIND, CLAIMS, EVENTS, FIELD_MANAGER, FINETUNE_JOBS, PODS, Cluster, Resource
from finetune_operator.kubernetes_types import Raw

CONFLICT = 409
RESOURCES: Mapping[str, Resource] = {
    r.plural: r for r in (FINETUNE_JOBS, PODS, EVENTS, *(r for r in BY_KIND.values() if r is not CLAIMS))
}
"""Everything that is kept as an object; a claim is its folder."""


@dataclass(frozen=True)
class Change:
    """An object was written, or deleted."""

    resource: Resource
    object: Raw
    is_deletion: bool = False


class LocalCluster(Cluster):
    """Objects in files. All calls come from one event loop."""

    def __init__(self, folders: Folders) -> None:
        super().__init__()
        self._folders = folders
        self._objects: dict[tuple[str, str, str], Raw] = {}
        self._watchers: builtins.list[Callable[[Change], None]] = []
        for path in sorted(folders.objects.glob("*/*/*.json")):
            kind, namespace = path.parts[-3:-1]
            self._objects[kind, namespace, path.stem] = json.loads(path.read_text(encoding="utf-8"))
        versions = (int(raw["metadata"]["resourceVersion"]) for raw in self._objects.values())
        self._version = max(versions, default=0)

    async def __aenter__(self) -> Self:
        """Nothing to open."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""

    def watch(self, watcher: Callable[[Change], None]) -> None:
        """Call `watcher` after each change."""
        self._watchers.append(watcher)

    def all(self, resource: Resource) -> Iterator[Raw]:
        """Return copies of all objects of a kind."""
        found = [raw for (kind, _, _), raw in self._objects.items() if kind == resource.plural]
        return iter(copy.deepcopy(found))

    def read(self, resource: Resource, namespace: str, name: str) -> Raw | None:
        """Return a copy of one object."""
        return copy.deepcopy(self._objects.get((resource.plural, namespace, name)))

    async def get(self, resource: Resource, namespace: str, name: str) -> Raw | None:
        """Return one object, or None. A claim exists if its folder does."""
        if resource == CLAIMS:
            return {"metadata": {"name": name}} if self._folders.claim(name).is_dir() else None
        return self.read(resource, namespace, name)

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> builtins.list[Raw]:
        """List all objects that match a label selector, in one namespace or in all."""
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        return [
            raw
            for raw in self.all(resource)
            if namespace in (None, raw["metadata"]["namespace"])
            and wanted.items() <= (raw["metadata"].get("labels") or {}).items()
        ]

    async def create(self, manifest: Raw) -> Raw | None:
        """Create an object. None if one of its name exists already."""
        if manifest["kind"] == "PersistentVolumeClaim":
            self._folders.claim(manifest["metadata"]["name"]).mkdir(parents=True, exist_ok=True)
            return manifest
        return self.add(BY_KIND[manifest["kind"]], manifest)

    def add(self, resource: Resource, manifest: Raw) -> Raw | None:
        """Create an object of any kind. None if one of its name exists already."""
        metadata = manifest["metadata"]
        if self.read(resource, metadata["namespace"], metadata["name"]) is not None:
            return None
        created = {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(), "generation": 1}
        return self.write(resource, {**copy.deepcopy(manifest), "metadata": {**metadata, **created}})

    async def apply(self, manifest: Raw, manager: str = FIELD_MANAGER) -> Raw:
        """Create the object, or replace the fields that the manifest names.

        Any `manager` but the operator's own adds its adapter to the list of an InferenceService.
        """
        resource, metadata = BY_KIND[manifest["kind"]], manifest["metadata"]
        live = self.read(resource, metadata["namespace"], metadata["name"])
        if live is None:
            return self.add(resource, manifest) or {}
        content = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata")}
        if manager != FIELD_MANAGER:
            added = manifest["spec"]["adapters"]
            names = {adapter["name"] for adapter in added}
            kept = [adapter for adapter in live["spec"].get("adapters", []) if adapter["name"] not in names]
            content = {"spec": {"adapters": [*kept, *added]}}
        for key, value in content.items():
            live[key] = {**live.get(key, {}), **value} if key == "spec" else value
        live["metadata"].update({k: v for k, v in metadata.items() if k not in ("name", "namespace")})
        before = self._objects[resource.plural, metadata["namespace"], metadata["name"]]
        live["metadata"]["generation"] += live.get("spec") != before.get("spec")
        return self.write(resource, live)

    async def patch_status(self, resource: Resource, metadata: Raw, status: Raw) -> bool:
        """Merge a status. False if the object is gone; a ClusterError with `is_conflict` if somebody wrote meanwhile."""
        live = self.read(resource, metadata["namespace"], metadata["name"])
        if live is None:
            return False
        found = live["metadata"]
        if (found["uid"], found["resourceVersion"]) != (metadata["uid"], metadata["resourceVersion"]):
            what = f"{resource.plural} {metadata['namespace']}/{metadata['name']}"
            raise ClusterError("patch status of", what, CONFLICT, "the object was modified")
        live["status"] = _merged(live.get("status") or {}, status)
        self.write(resource, live)
        return True

    async def annotate(
        self, resource: Resource, namespace: str, name: str, uid: str, annotations: Mapping[str, str]
    ) -> None:
        """Set annotations of this very object. One that is gone is fine."""
        live = self.read(resource, namespace, name)
        if live is not None and live["metadata"]["uid"] == uid:
            live["metadata"]["annotations"] = {**live["metadata"].get("annotations", {}), **annotations}
            self.write(resource, live)

    async def patch_condition(
        self, resource: Resource, namespace: str, name: str, uid: str, resource_version: str, condition: Raw
    ) -> None:
        """Set one condition of this very object as it was read."""
        live = self.read(resource, namespace, name)
        if live is None or (live["metadata"]["uid"], live["metadata"]["resourceVersion"]) != (uid, resource_version):
            return
        self.set_conditions(live, condition)
        self.write(resource, live)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete this very object and what it owns. A pod is marked: it is gone once its processes are."""
        live = self.read(resource, namespace, name)
        if live is None or live["metadata"]["uid"] != uid:
            return
        if resource == PODS:
            self.mark_deleted(live)
            return
        self.remove_with_children(resource, live)

    async def create_event(self, namespace: str, event: Raw) -> None:
        """Post an Event; one that exists already was posted before a restart."""
        self.add(EVENTS, {**event, "metadata": {**event["metadata"], "namespace": namespace}})

    def write(self, resource: Resource, raw: Raw) -> Raw:
        """Store an object as it is, with another resourceVersion, and notify the watchers."""
        self._version += 1
        raw = {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(self._version)}}
        key = (resource.plural, raw["metadata"]["namespace"], raw["metadata"]["name"])
        path = self._folders.object(*key)
        self._objects[key] = raw
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".partial")
        staged.write_text(json.dumps(raw, indent=1), encoding="utf-8")
        staged.replace(path)
        self._notify(Change(resource, raw))
        return copy.deepcopy(raw)

    def remove(self, resource: Resource, raw: Raw) -> None:
        """Forget an object, and notify the watchers."""
        key = (resource.plural, raw["metadata"]["namespace"], raw["metadata"]["name"])
        self._objects.pop(key, None)
        self._folders.object(*key).unlink(missing_ok=True)
        self._notify(Change(resource, raw, is_deletion=True))

    def remove_with_children(self, resource: Resource, raw: Raw) -> None:
        """Forget an object and what it owns. A pod that runs is marked: it is gone once its processes are."""
        uid = raw["metadata"]["uid"]
        self.remove(resource, raw)
        for kind, owned in [(RESOURCES[kind], raw) for (kind, _, _), raw in self._objects.items()]:
            if not any(owner["uid"] == uid for owner in owned["metadata"].get("ownerReferences") or []):
                continue
            if kind == PODS:
                self.mark_deleted(owned)
            else:
                self.remove_with_children(kind, owned)

    def mark_deleted(self, pod: Raw) -> None:
        """Ask the node to stop a pod and to remove it."""
        if "deletionTimestamp" not in pod["metadata"]:
            self.write(PODS, {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": timestamp()}})

    @staticmethod
    def set_conditions(raw: Raw, *conditions: Raw) -> None:
        """Put conditions into a pod's or Job's status, each in place of the one of its type."""
        types = {condition["type"] for condition in conditions}
        status = raw.setdefault("status", {})
        others = [c for c in status.get("conditions") or [] if c["type"] not in types]
        status["conditions"] = [*others, *conditions]

    def _notify(self, change: Change) -> None:
        for watcher in self._watchers:
            watcher(copy.deepcopy(change))


def timestamp() -> str:
    """Return metav1.Time of now."""
    return metav1_time(datetime.now(UTC))


def _merged(old: Raw, patch: Raw) -> Raw:
    """Return `old` after an RFC 7386 patch."""
    merged = dict(old)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            before = merged.get(key)
            merged[key] = _merged(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged
