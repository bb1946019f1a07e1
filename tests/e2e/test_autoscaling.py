"""Load brings a second replica: by the real autoscaler, with real metrics, and no request notices."""

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from finetune_api.contract import SERVER_PORT
from finetune_trainer.model.fingerprint import take_fingerprint
from lab.figures import Figure, record
from lab.fixtures.tiny_adapter import make_tiny_adapter
from lab.kubernetes.controlplane import read_audit_events
from support.cluster.api import Raw, wait_for
from support.cluster.local_kubernetes import TEST_MODELS, LocalKubernetes, Namespace

SERVICE = "scaled"
SERVER = "scaled-server"
ADAPTER = "tuned"
FOLDER = "autoscaling"
"""Of the adapter, beside the tiny model."""
TARGET_PERCENT = 100
"""Of the CPU time that a pod requests: a tenth of a core."""
CLIENTS = 2
PAUSE_SECONDS = 0.05
"""Between two requests of a client: several times what is aimed at, and the second pod still finds a core to start on."""
AT_REST_SECONDS = 150.0
"""A pod imports torch, is asked for its adapter, and then its metrics are taken twice."""
SCALED_SECONDS = 150.0
"""Metrics are taken every 15 s, the autoscaler looks every 15 s, and a pod imports torch beside the load."""
AUTOSCALER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
OPERATOR = "system:serviceaccount:finetune-system:finetune-operator"


@dataclass
class Clients:
    """Ask for the same deterministic answer again and again, with a new connection each time, so that all pods are asked."""

    url: str
    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, stopped: threading.Event) -> None:
        body = {"model": ADAPTER, "prompt": "Where is my order?", "max_tokens": 24, "temperature": 0}
        while not stopped.wait(PAUSE_SECONDS):
            try:
                with httpx.Client(timeout=60) as client:
                    answer = client.post(f"{self.url}/v1/completions", json=body).raise_for_status()
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            else:
                self.answers.append(answer.json()["choices"][0]["text"])


@dataclass
class Scaled:
    """An autoscaled service that was left alone so far."""

    namespace: Namespace

    def status(self) -> Raw:
        found = self.namespace.api.get("inferenceservices", self.namespace.name, SERVICE) or {}
        return found.get("status") or {}

    def counts(self) -> dict[str, int]:
        """What the status says about replicas, of the pods and of the adapter."""
        status = self.status()
        adapter = (status.get("adapters") or [{}])[0]
        return {
            **{name: status.get(name, 0) for name in ("replicas", "readyReplicas")},
            **{name: adapter.get(name, 0) for name in ("desiredReplicas", "loadedReplicas", "verifiedReplicas")},
        }

    def wait_verified(self, replicas: int, seconds: float) -> None:
        wait_for(f"{replicas} verified", lambda: set(self.counts().values()) == {replicas}, seconds, 0.1)

    def autoscaler(self) -> Raw:
        found = self.namespace.api.get("horizontalpodautoscalers", self.namespace.name, SERVER)
        assert found is not None
        return found

    def utilization(self) -> int | None:
        """Percent of the requested CPU time that the autoscaler sees; None as long as it sees nothing."""
        status = self.autoscaler().get("status") or {}
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or []}
        if conditions.get("ScalingActive") != "True":
            return None
        utilization: int = status["currentMetrics"][0]["resource"]["current"]["averageUtilization"]
        return utilization

    def deployment(self) -> Raw:
        found = self.namespace.api.get("deployments", self.namespace.name, SERVER)
        assert found is not None
        return found

    def tokens(self) -> dict[str, float]:
        """Tokens of answers with the adapter that each pod has generated so far."""
        pods = self.namespace.api.list("pods", self.namespace.name, f"finetune.dev/service-name={SERVICE}")
        counted = re.compile(rf'^finetune_inference_completion_tokens_total{{model="{ADAPTER}"}} (\S+)$', re.MULTILINE)
        found = {}
        for pod in pods:
            metrics = httpx.get(f"http://{pod['status']['podIP']}:{SERVER_PORT}/metrics").raise_for_status().text
            match = counted.search(metrics)
            found[pod["metadata"]["name"]] = float(match[1]) if match else 0.0
        return found

    def writers(self, subresource: str | None) -> list[str]:
        """Who changed the Deployment so far, oldest first; or its `scale`."""
        wanted = {"resource": "deployments", "namespace": self.namespace.name, "name": SERVER}
        since = self.deployment()["metadata"]["creationTimestamp"].removesuffix("Z")
        return [
            event["user"]["username"]
            for event in read_audit_events(self.namespace.kubernetes.layout.audit_log)
            if wanted.items() <= event.get("objectRef", {}).items()
            and event["objectRef"].get("subresource") == subresource
            and event["verb"] in ("update", "patch")
            and event["requestReceivedTimestamp"] > since
            and event["responseStatus"]["code"] == 200
        ]


def an_adapter(models: Path) -> Raw:
    """Entry of spec.adapters, on the claim of the base model, with the fingerprint that a trainer would have taken."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, folder = models / TEST_MODELS / "tiny", models / TEST_MODELS / FOLDER
    digest = make_tiny_adapter(folder, base, seed=3)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)  # pods run as another user
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    fingerprint = take_fingerprint(model, AutoTokenizer.from_pretrained(base), "float32")
    return {
        "name": ADAPTER,
        "source": f"pvc://models/{TEST_MODELS}/{FOLDER}",
        "digest": digest,
        "fingerprint": fingerprint.to_dict(),
    }


@pytest.fixture(scope="module")
def scaled(kubernetes: LocalKubernetes) -> Iterator[Scaled]:
    kubernetes.cluster.start_metrics()
    with kubernetes.namespace("autoscaling") as namespace:
        namespace.serve(
            SERVICE,
            model={"source": f"pvc://models/{TEST_MODELS}/tiny"},
            adapters=[an_adapter(kubernetes.layout.models)],
            autoscaling={"minReplicas": 1, "maxReplicas": 2, "targetCpuUtilization": TARGET_PERCENT},
            resources={"cpu": "100m", "memory": "2Gi"},
        )
        yield Scaled(namespace)


def test_load_brings_a_second_replica_that_is_verified_and_nobody_takes_it_back(scaled: Scaled) -> None:
    began, api, namespace = time.monotonic(), scaled.namespace.api, scaled.namespace.name
    scaled.wait_verified(1, AT_REST_SECONDS)
    wait_for("metrics", lambda: scaled.utilization() is not None, AT_REST_SECONDS, 0.5)
    assert (scaled.utilization() or 0) < TARGET_PERCENT, "at rest"
    assert scaled.counts()["replicas"] == 1, "at rest"
    service = api.get("services", namespace, SERVICE)
    assert service is not None
    clients, stopped = Clients(f"http://{service['spec']['clusterIP']}"), threading.Event()
    threads = [threading.Thread(target=clients.run, args=(stopped,)) for _ in range(CLIENTS)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        wait_for("the autoscaler", lambda: scaled.deployment()["spec"]["replicas"] == 2, SCALED_SECONDS, 0.1)
        decided = time.monotonic() - started
        scaled.wait_verified(2, SCALED_SECONDS)
        verified = time.monotonic() - started

        # An edit by somebody else, so that the operator has to write the Deployment again.
        api.patch("deployments", namespace, SERVER, {"spec": {"revisionHistoryLimit": 7}})
        wait_for("the repair", lambda: scaled.deployment()["spec"]["revisionHistoryLimit"] == 2, 60, 0.1)
        before = scaled.tokens()
        wait_for("answers of both pods", lambda: all(n > before[pod] for pod, n in scaled.tokens().items()), 60, 0.5)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    record(
        "autoscaling",
        [
            Figure("load begins to the autoscaler asks for a second replica", decided, "s", "lower"),
            Figure("load begins to the second replica is verified", verified, "s", "lower", SCALED_SECONDS),
            Figure("failed requests while a replica was added", len(clients.failures), "requests", "lower", must=0),
            Figure("answered requests meanwhile", len(clients.answers), "requests", "higher"),
        ],
        time.monotonic() - began,
    )
    assert clients.failures == []
    assert len(set(clients.answers)) == 1, "both pods answer with the adapter, from their first request on"
    assert set(scaled.counts().values()) == {2}
    assert scaled.writers("scale") == [AUTOSCALER], "it had to ask once only"
    assert scaled.writers(None)[-1] == OPERATOR, "it was the operator that repaired"
    assert scaled.status()["phase"] == "Ready"
