"""The usual kopf operator: on.create, on.update, on.delete and on.event, the synchronous client, kopf's own progress annotations.

python -m lab.bench.operator.naive KUBECONFIG
"""

import asyncio
import sys
from typing import Any

import kopf
from kubernetes import client, config

from lab.bench.operator.api import JOB_NAME
from lab.bench.operator.bare import child

GROUP, VERSION, PLURAL = "finetune.dev", "v1alpha1", "finetunejobs"
registry = kopf.OperatorRegistry()


@kopf.on.login(registry=registry)
def login(**kwargs: Any) -> Any:
    return kopf.login_via_client(**kwargs)


@kopf.on.startup(registry=registry)
async def started(**_: Any) -> None:
    print("ready", flush=True)


@kopf.on.create(GROUP, VERSION, PLURAL, id="job", registry=registry)
def create(name: str, namespace: str, uid: str, patch: Any, **_: Any) -> None:
    client.BatchV1Api().create_namespaced_job(namespace, child(name, uid))
    patch.status["phase"] = "Pending"


@kopf.on.create(GROUP, VERSION, PLURAL, id="announce", registry=registry)
def announce(body: Any, **_: Any) -> None:
    kopf.info(body, reason="Created", message="The training Job was created.")


@kopf.on.update(GROUP, VERSION, PLURAL, registry=registry)
def update(**_: Any) -> None:
    pass


@kopf.on.delete(GROUP, VERSION, PLURAL, registry=registry)
def delete(**_: Any) -> None:
    pass


@kopf.on.event("", "v1", "pods", labels={JOB_NAME: kopf.PRESENT}, registry=registry)
def pod(event: Any, labels: Any, namespace: str, status: Any, **_: Any) -> None:
    phase = status.get("phase")
    if event["type"] != "DELETED" and phase in ("Running", "Succeeded", "Failed"):
        client.CustomObjectsApi().patch_namespaced_custom_object_status(
            GROUP, VERSION, namespace, PLURAL, labels[JOB_NAME], {"status": {"phase": phase}}
        )


def main() -> None:
    config.load_kube_config(sys.argv[1])
    asyncio.run(kopf.operator(registry=registry, clusterwide=True, standalone=True))


if __name__ == "__main__":
    main()
