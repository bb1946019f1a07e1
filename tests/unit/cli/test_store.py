"""The cluster over files behaves as the API server does where the reconcilers rely on it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from finetune_cli.local.folders import Folders
from finetune_cli.local.store import LocalCluster
from finetune_operator.errors import ClusterError
from finetune_operator.io.cluster import CLAIMS, FINETUNE_JOBS, INFERENCE_SERVICES, JOBS, PODS
from support.cli.finetune_command import a_job


def an_object(kind: str, name: str, **content: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": "default"}, **content}


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    return LocalCluster(Folders(tmp_path))


def created(cluster: LocalCluster) -> dict[str, Any]:
    job = a_job()
    job["metadata"]["namespace"] = "default"
    raw = cluster.add(FINETUNE_JOBS, job)
    assert raw is not None
    return raw


def test_a_status_decided_on_an_older_object_is_refused(cluster: LocalCluster) -> None:
    job = created(cluster)
    assert asyncio.run(cluster.patch_status(FINETUNE_JOBS, job["metadata"], {"phase": "Running", "a": {"b": 1}}))
    with pytest.raises(ClusterError) as caught:
        asyncio.run(cluster.patch_status(FINETUNE_JOBS, job["metadata"], {"phase": "Failed"}))
    assert caught.value.is_conflict
    fresh = cluster.read(FINETUNE_JOBS, "default", "tone")
    assert fresh is not None
    asyncio.run(cluster.patch_status(FINETUNE_JOBS, fresh["metadata"], {"phase": None, "a": {"c": 2}}))
    assert (cluster.read(FINETUNE_JOBS, "default", "tone") or {})["status"] == {"a": {"b": 1, "c": 2}}


def test_objects_are_there_again_after_a_restart(cluster: LocalCluster, tmp_path: Path) -> None:
    job = created(cluster)
    again = LocalCluster(Folders(tmp_path))
    assert again.read(FINETUNE_JOBS, "default", "tone") == job
    assert asyncio.run(again.create(an_object("Job", "a"))) is not None
    assert asyncio.run(again.create(an_object("Job", "a"))) is None, "one of the name exists"


def test_what_an_object_owns_goes_with_it_and_a_pod_once_its_processes_have_ended(cluster: LocalCluster) -> None:
    owner = created(cluster)["metadata"]["uid"]
    job = an_object("Job", "a")
    job["metadata"]["ownerReferences"] = [{"uid": owner}]
    child = asyncio.run(cluster.create(job)) or {}
    pod = an_object("Pod", "p")
    pod["metadata"]["ownerReferences"] = [{"uid": child["metadata"]["uid"]}]
    cluster.add(PODS, pod)
    asyncio.run(cluster.delete(FINETUNE_JOBS, "default", "tone", "another uid"))
    assert cluster.read(FINETUNE_JOBS, "default", "tone") is not None
    asyncio.run(cluster.delete(FINETUNE_JOBS, "default", "tone", owner))
    assert cluster.read(FINETUNE_JOBS, "default", "tone") is None
    assert cluster.read(JOBS, "default", "a") is None
    assert "deletionTimestamp" in (cluster.read(PODS, "default", "p") or {})["metadata"]


def test_another_manager_adds_its_adapter_to_the_list(cluster: LocalCluster) -> None:
    service = an_object("InferenceService", "s", spec={"model": {"source": "x"}, "adapters": [{"name": "a", "v": 1}]})
    asyncio.run(cluster.apply(service))
    addition = an_object("InferenceService", "s", spec={"adapters": [{"name": "b"}]})
    asyncio.run(cluster.apply(addition, manager="finetune-operator/b"))
    live = cluster.read(INFERENCE_SERVICES, "default", "s") or {}
    assert [adapter["name"] for adapter in live["spec"]["adapters"]] == ["a", "b"]
    assert live["metadata"]["generation"] == 2
    asyncio.run(cluster.apply(an_object("InferenceService", "s", spec=live["spec"])))
    assert (cluster.read(INFERENCE_SERVICES, "default", "s") or {})["metadata"]["generation"] == 2, "nothing changed"


def test_a_claim_is_a_folder(cluster: LocalCluster, tmp_path: Path) -> None:
    assert asyncio.run(cluster.get(CLAIMS, "default", "rows")) is None
    asyncio.run(cluster.create(an_object("PersistentVolumeClaim", "rows")))
    assert (tmp_path / "claims" / "rows").is_dir()
    assert asyncio.run(cluster.get(CLAIMS, "default", "rows")) is not None
