"""The floor: an informer per kind, trimmed tuples, a keyed queue, and no decisions. python -m lab.bench.operator.bare KUBECONFIG"""

import asyncio
import sys
from pathlib import Path

from lab.bench.operator.api import JOB_NAME, MANAGED, MERGE, Api, Raw, path

WORKERS = 16
DONE = ("Succeeded", "Failed")


def child(name: str, uid: str) -> Raw:
    labels = {"app.kubernetes.io/managed-by": "finetune-operator", JOB_NAME: name}
    owner = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "name": name, "uid": uid, "controller": True}
    container = {"name": "trainer", "image": "i"}
    spec = {"restartPolicy": "Never", "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-a1", "labels": labels, "ownerReferences": [owner]},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


class Bare:
    """Phases by namespace and name."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.jobs: dict[tuple[str, str], tuple[str, str]] = {}
        self.children: set[tuple[str, str]] = set()
        self.pods: dict[tuple[str, str], str] = {}
        self.queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.dirty: set[tuple[str, str]] = set()

    def mark(self, key: tuple[str, str]) -> None:
        if key not in self.dirty:
            self.dirty.add(key)
            self.queue.put_nowait(key)

    def see(self, plural: str, raw: Raw) -> tuple[str, str]:
        metadata = raw["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if plural == "finetunejobs":
            self.jobs[key] = (metadata["uid"], (raw.get("status") or {}).get("phase", ""))
            return key
        key = (metadata["namespace"], metadata["labels"].get(JOB_NAME, ""))
        if plural == "jobs":
            self.children.add(key)
        else:
            self.pods[key] = (raw.get("status") or {}).get("phase", "")
        return key

    async def mirror(self, plural: str, selector: str, listed: asyncio.Event) -> None:
        first = await self.api.list(plural, selector=selector)
        for raw in first["items"]:
            self.see(plural, raw)
        version, items = first["version"], first.pop("items")
        del items
        listed.set()
        async for event in self.api.watch(plural, version, selector):
            self.mark(self.see(plural, event["object"]))

    async def work(self) -> None:
        while True:
            key = await self.queue.get()
            self.dirty.discard(key)
            uid, phase = self.jobs.get(key, ("", "Failed"))
            if phase in DONE:
                continue
            namespace, name = key
            if key not in self.children:
                self.children.add(key)
                await self.api.call("POST", path("jobs", namespace), child(name, uid))
            wanted = self.pods.get(key, "")
            if wanted in ("Running", *DONE) and wanted != phase:
                self.jobs[key] = (uid, wanted)
                url = path("finetunejobs", namespace, name, "status")
                await self.api.call("PATCH", url, {"status": {"phase": wanted}}, MERGE)


async def main() -> None:
    async with Api(Path(sys.argv[1])) as api:
        bare = Bare(api)
        kinds = {"finetunejobs": "", "jobs": MANAGED, "pods": MANAGED}
        listed = [asyncio.Event() for _ in kinds]
        async with asyncio.TaskGroup() as tasks:
            for (plural, selector), event in zip(kinds.items(), listed, strict=True):
                tasks.create_task(bare.mirror(plural, selector, event))
            for event in listed:
                await event.wait()
            for key, (_, phase) in bare.jobs.items():
                if phase not in DONE:
                    bare.mark(key)
            print("ready", flush=True)
            for _ in range(WORKERS):
                tasks.create_task(bare.work())


if __name__ == "__main__":
    asyncio.run(main())
