"""The machine's own cluster as end-to-end tests use it: real pods of the real images, one namespace for each test module.

Nothing here reads KUBECONFIG: these tests kill pods and write to volumes, so the only cluster they ever touch is the one
that `python3 -m lab.kubernetes up` made.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.fixtures.tiny_model import as_jsonl, chat_rows, make_tiny_model
from lab.kubernetes.cluster import Cluster
from lab.kubernetes.layout import default_layout
from lab.kubernetes.storage import claim_models, recycle_volumes
from support.cluster.api import Api, Raw, wait_for
from support.objects.factories import a_finetune_job, an_inference_service

SYSTEM_NAMESPACE = "finetune-system"
DEMO_NAMESPACE = "finetune-demo"
BROKER_SECRET = "finetune-broker"
TEST_MODELS = "end-to-end-tests"
"""Folder of the models volume that these tests fill and remove."""
SMALL = {"cpu": "50m", "memory": "2Gi"}
"""What a pod with the tiny model asks for: many fit on two cores."""
ROWS = as_jsonl(chat_rows(64))
END_PHASES = ("Succeeded", "Failed", "Cancelled")
POLL_SECONDS = 0.5
LONGEST_JOB_SECONDS = 240.0
"""A tiny job takes seconds, its pod 30 s to import torch; several at once on two cores take their time."""

_counter = itertools.count(1)


class LocalKubernetes:
    """The running cluster."""

    def __init__(self) -> None:
        self.cluster = Cluster(default_layout())
        self.layout = self.cluster.layout

    @property
    def missing(self) -> str | None:
        """Why end-to-end tests cannot run now, in one sentence."""
        if not self.layout.kubeconfig.exists() or not self.cluster.node_ready():
            return "the local cluster is not up; run `make demo`"
        if not self.api.list("deployments", SYSTEM_NAMESPACE):
            return "the chart is not installed on the local cluster; run `make demo`"
        return None

    @property
    def api(self) -> Api:
        """Everything, as administrator."""
        return Api(self.cluster.control_plane.admin)

    def provide_models(self) -> None:
        """A tiny model and a folder that is no model, on the volume that every namespace can claim as `models`."""
        folder = self.layout.models / TEST_MODELS
        shutil.rmtree(folder, ignore_errors=True)
        make_tiny_model(folder / "tiny")
        make_tiny_model(folder / "other", seed=1)
        (folder / "nonsense").mkdir()
        (folder / "nonsense" / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # pods run as another user

    def remove_models(self) -> None:
        """The volume is kept when the cluster goes; these tests leave nothing on it."""
        shutil.rmtree(self.layout.models / TEST_MODELS, ignore_errors=True)

    @contextmanager
    def namespace(self, purpose: str) -> Iterator["Namespace"]:
        """A new namespace with Pod Security `restricted`, base models and live progress; deleted in the end."""
        name = f"e2e-{purpose}-{next(_counter)}"
        api = self.api
        api.delete("namespaces", None, name)
        wait_for(f"an earlier namespace {name} to be gone", lambda: api.get("namespaces", None, name) is None, 120)
        with self.cluster.lock():
            recycle_volumes(api.client, self.layout)
            claim_models(api.client, self.layout, name)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        api.patch("namespaces", None, name, {"metadata": {"labels": labels}})
        secret = api.get("secrets", SYSTEM_NAMESPACE, BROKER_SECRET)
        if secret:
            metadata = {"name": BROKER_SECRET, "namespace": name}
            api.create("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": secret["data"]})
        try:
            yield Namespace(name, self)
        finally:
            api.delete("namespaces", None, name)

    def volume_of(self, namespace: str, claim: str) -> Path:
        """The directory of this machine that holds a bound claim."""
        bound = self.api.get("persistentvolumeclaims", namespace, claim)
        assert bound, f"{namespace} has no claim {claim}"
        volume = self.api.client.get(f"/api/v1/persistentvolumes/{bound['spec']['volumeName']}")
        return Path(volume["spec"]["local"]["path"])

    def kill_system_pod(self, component: str) -> None:
        """End a pod of the chart without grace, as a crash of its node would."""
        selector = f"app.kubernetes.io/component={component}"
        pods = self.api.list("pods", SYSTEM_NAMESPACE, selector)
        assert pods, f"no pod of {component}"
        for pod in pods:
            self.api.delete("pods", SYSTEM_NAMESPACE, pod["metadata"]["name"], gracePeriodSeconds=0)


@dataclass(frozen=True)
class Namespace:
    """One namespace and what tests do in it."""

    name: str
    kubernetes: LocalKubernetes

    @property
    def api(self) -> Api:
        return self.kubernetes.api

    def submit(self, name: str, **spec: Any) -> Raw:
        """Create a job of the tiny model, strictly validated as kubectl would; arguments replace fields of spec."""
        fields: Raw = {
            "model": {"source": f"pvc://models/{TEST_MODELS}/tiny"},
            "dataset": {"inline": ROWS},
            "hyperparameters": {"maxSteps": 20, "batchSize": 4, "learningRate": 0.01},
            "resources": SMALL,
            **spec,
        }
        manifest = a_finetune_job(name, self.name, **fields)
        path = self.api.path("finetunejobs", self.name) + "?fieldValidation=Strict"
        return self.api.client.post(path, manifest)

    def serve(self, name: str, **spec: Any) -> Raw:
        """Create an InferenceService."""
        return self.api.create("inferenceservices", an_inference_service(name, self.name, **spec))

    @contextmanager
    def serving(self, name: str, **spec: Any) -> Iterator[str]:
        """An InferenceService that is deleted in the end; its URL."""
        self.serve(name, **spec)
        try:
            service = wait_for(f"the Service {name}", lambda: self.api.get("services", self.name, name), 60)
            yield f"http://{service['spec']['clusterIP']}"
        finally:
            self.api.delete("inferenceservices", self.name, name)

    def status(self, name: str) -> Raw:
        """Status of a job; empty before the operator has seen it."""
        job = self.api.get("finetunejobs", self.name, name)
        assert job, f"FinetuneJob {self.name}/{name} is gone"
        return job.get("status") or {}

    def wait_for_phase(self, name: str, *phases: str, seconds: float = LONGEST_JOB_SECONDS) -> Raw:
        """Status once the job is in one of these phases; fails at once when it ended in another one."""
        seen: Raw = {}

        def arrived() -> Raw | None:
            seen.clear()
            seen.update(self.status(name))
            phase = seen.get("phase")
            assert phase in phases or phase not in END_PHASES, f"{name} is {phase}: {seen.get('message')}"
            return seen if phase in phases else None

        return wait_for(f"{name} to be {' or '.join(phases)}", arrived, seconds, POLL_SECONDS)

    def wait_for_step(self, name: str, step: int = 1) -> Raw:
        """Status once live progress has shown this step."""

        def arrived() -> Raw | None:
            status = self.status(name)
            assert status.get("phase") not in END_PHASES, f"{name} ended before it could be disturbed: {status}"
            return status if (status.get("progress") or {}).get("step", 0) >= step else None

        return wait_for(f"progress of {name}", arrived, LONGEST_JOB_SECONDS, POLL_SECONDS)

    def pods_of(self, job: str) -> list[Raw]:
        """Training pods of a job."""
        return self.api.list("pods", self.name, f"finetune.dev/job-name={job},app.kubernetes.io/name=finetune-trainer")

    def adapter_folders(self, job: str, claim: str = "finetune-adapters") -> list[Path]:
        """What lies where the adapters of this name belong, hidden leftovers included."""
        return sorted((self.kubernetes.volume_of(self.name, claim) / job).iterdir())
