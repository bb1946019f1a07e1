"""Plays the Job controller and the kubelet for all peers alike: a pod for each Job, 50 ms to start, 300 ms to succeed.

python -m lab.bench.operator.actor KUBECONFIG
"""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.outcome import CommittedAdapter, Outcome, Result
from finetune_api.reasons import Reason
from lab.bench.operator.api import MANAGED, STRATEGIC, Api, Raw, path

START_SECONDS, RUN_SECONDS = 0.05, 0.3
ADAPTER = CommittedAdapter(path="tone", digest="sha256:" + "a" * 64, size_bytes=1234)
TRAINED = Outcome(result=Result.SUCCEEDED, reason=Reason.TRAINED, step=10, adapter=ADAPTER).to_termination_message()
ACCEPTED = Outcome(result=Result.SUCCEEDED, reason=Reason.ACCEPTED, message="8 rows").to_termination_message()


async def main() -> None:
    async with Api(Path(sys.argv[1])) as api:
        known = await api.list("jobs", selector=MANAGED)
        tasks = set()
        async for event in api.watch("jobs", known["version"], MANAGED):
            if event["type"] == "ADDED":
                task = asyncio.create_task(run(api, event["object"]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)


async def run(api: Api, job: Raw) -> None:
    metadata = job["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    created = await api.call("POST", path("pods", namespace), pod_of(job))
    containers = created["spec"]["containers"][0]["name"]
    await asyncio.sleep(START_SECONDS)
    started = now()
    state = {"running": {"startedAt": started}}
    status: Raw = {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    if created["spec"].get("initContainers"):
        status["initContainerStatuses"] = [container("validate", terminated(started, ACCEPTED))]
    status["containerStatuses"] = [container(containers, state)]
    await patch(api, "pods", namespace, name, status)
    await asyncio.sleep(RUN_SECONDS)
    ended = {"phase": "Succeeded", "containerStatuses": [container(containers, terminated(started, TRAINED))]}
    await patch(api, "pods", namespace, name, ended)
    done = [
        {"type": kind, "status": "True", "lastTransitionTime": now()} for kind in ("SuccessCriteriaMet", "Complete")
    ]
    times = {"startTime": started, "completionTime": now()}
    await patch(
        api, "jobs", namespace, name, {"succeeded": 1, "conditions": done, "uncountedTerminatedPods": {}, **times}
    )


def pod_of(job: Raw) -> Raw:
    metadata, template = job["metadata"], job["spec"]["template"]
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    labels = {**template["metadata"].get("labels", {}), "batch.kubernetes.io/job-name": metadata["name"]}
    annotations = template["metadata"].get("annotations", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": metadata["name"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }


async def patch(api: Api, plural: str, namespace: str, name: str, status: Raw) -> None:
    await api.call("PATCH", path(plural, namespace, name, "status"), {"status": status}, STRATEGIC)


def container(name: str, state: Raw) -> Raw:
    return {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def terminated(started: str, message: str) -> Raw:
    times = {"startedAt": started, "finishedAt": now()}
    return {"terminated": {"exitCode": 0, "reason": "Completed", "message": message, **times}}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    asyncio.run(main())
