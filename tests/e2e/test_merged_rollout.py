"""A merged adapter is rolled out pod by pod, while clients ask for it: none gets a pod that was not proven, nor an error."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from lab.figures import Figure, record
from support.cluster.api import Raw, wait_for
from support.cluster.local_kubernetes import DEMO_NAMESPACE, LocalKubernetes, Namespace
from support.server.adapter_copies import adapter_copies

SERVICE = "merged"
ADAPTER = "tickets"
ROLLOUT_SECONDS = 240.0
"""A pod imports torch, loads and merges: half a minute on quiet cores."""
PAUSE_SECONDS = 0.1
PROXY_LAG_SECONDS = 5.0
"""A service proxy of a busy node learns this late that a pod is going; 1 s is its own pace between two changes."""


@dataclass
class Client:
    """Asks the endpoint which version it has, and for a token, until it is stopped; a new connection each time."""

    url: str
    names: dict[str, str]
    """Of versions, by digest."""
    versions: list[str] = field(default_factory=list)
    """Names of those that answered."""
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask in a thread until the block ends."""
        stopped = threading.Event()
        thread = threading.Thread(target=self._run, args=(stopped,))
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _run(self, stopped: threading.Event) -> None:
        body = {"model": ADAPTER, "prompt": "My parcel has not arrived.", "max_tokens": 1, "temperature": 0}
        while not stopped.wait(PAUSE_SECONDS):
            try:
                with httpx.Client(timeout=60) as client:
                    found = client.get(f"{self.url}/v1/models/{ADAPTER}").raise_for_status()
                    client.post(f"{self.url}/v1/completions", json=body).raise_for_status()
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            else:
                self.versions.append(self.names[found.json()["digest"]])


@dataclass
class Endpoint:
    """One Rolling service with a merged adapter, whose client never pauses."""

    namespace: Namespace
    versions: list[Raw]
    """Entries of spec.adapters, with the same weights and other digests."""
    broken: Raw
    """A version that has no effect."""
    client: Client

    def wait_for_clients(self, version: str) -> None:
        """Until the client gets nothing else: proxies learn a little late that a pod is going."""
        wait_for(f"clients to get {version}", lambda: self.client.versions[-20:] == [version] * 20, 60)

    def publish(self, version: Raw) -> float:
        """Monotonic seconds of the edit."""
        self.namespace.api.patch("inferenceservices", DEMO_NAMESPACE, SERVICE, {"spec": {"adapters": [version]}})
        return time.monotonic()

    def status(self) -> Raw:
        return (self.namespace.api.get("inferenceservices", DEMO_NAMESPACE, SERVICE) or {}).get("status") or {}

    def adapter(self) -> Raw:
        return (self.status().get("adapters") or [{}])[0]

    def wait_verified(self, version: Raw) -> None:
        def is_verified() -> bool:
            adapter = self.adapter()
            is_served = adapter.get("served", {}).get("digest") == version["digest"]
            return is_served and adapter["verified"] == "True" and self.status()["phase"] == "Ready"

        wait_for("the version to be verified", is_verified, ROLLOUT_SECONDS, 0.1)

    def pods(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self._staying()}

    def ready_pods(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self._staying() if is_ready(pod)}

    def _staying(self) -> list[Raw]:
        pods = self.namespace.api.list("pods", DEMO_NAMESPACE, f"finetune.dev/service-name={SERVICE}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


@pytest.fixture(scope="module")
def endpoint(kubernetes: LocalKubernetes, demo_job: Raw) -> Iterator[Endpoint]:
    with adapter_copies(kubernetes, demo_job, SERVICE) as copies:
        versions = [copies.renewed(folder, ADAPTER) for folder in ("one", "two")]
        broken = copies.sabotaged("zeroed", ADAPTER)
        namespace = Namespace(DEMO_NAMESPACE, kubernetes)
        spec = {"rollout": {"mode": "Rolling"}, "mergeAdapter": True, "resources": {"cpu": "100m", "memory": "3Gi"}}
        with namespace.serving(SERVICE, model=demo_job["spec"]["model"], adapters=versions[:1], **spec) as url:
            names = {version["digest"]: version["source"].rpartition("/")[2] for version in (*versions, broken)}
            endpoint = Endpoint(namespace, versions, broken, Client(url, names))
            endpoint.wait_verified(versions[0])
            with endpoint.client.asking():
                yield endpoint


def test_a_version_is_rolled_out_and_one_without_effect_stops_before_it_gets_traffic(endpoint: Endpoint) -> None:
    began, client = time.monotonic(), endpoint.client
    one, two = endpoint.versions
    started = endpoint.publish(two)
    endpoint.wait_verified(two)
    rollout = time.monotonic() - started
    endpoint.wait_for_clients("two")
    assert set(client.versions) == {"one", "two"}

    started, before = endpoint.publish(endpoint.broken), len(client.versions)
    wait_for("the refusal", lambda: endpoint.adapter().get("reason") == "AdapterHasNoEffect", ROLLOUT_SECONDS, 0.1)
    refusal = time.monotonic() - started
    status = endpoint.status()
    conditions = {condition["type"]: condition for condition in status["conditions"]}
    assert conditions["Ready"]["status"] == "True"
    assert conditions["Progressing"]["status"] == "False"
    assert f"Adapter {ADAPTER}: " in conditions["AdapterVerified"]["message"]
    assert "Clients still get version" in conditions["AdapterVerified"]["message"]
    assert endpoint.adapter()["served"]["digest"] == two["digest"]
    (serving,) = endpoint.ready_pods()

    assert client.failures == [], "of a rollout and a refusal"
    endpoint.namespace.api.delete("pods", DEMO_NAMESPACE, serving)
    wait_for(
        "a pod of the version before in its place",
        lambda: endpoint.ready_pods() - {serving},
        ROLLOUT_SECONDS,
        0.5,
    )
    answered = len(client.versions)
    wait_for("answers", lambda: len(client.versions) > answered + 10, 60)
    assert set(client.versions[before:]) == {"two"}, "nobody gets a version that was disproven"

    # Of the moments without the only pod; whoever was on the way to it has failed by now.
    client.failures.clear()
    (serving,) = endpoint.ready_pods()
    before_edit = endpoint.pods()
    endpoint.publish(one)
    wait_for("the pod after", lambda: endpoint.pods() - before_edit, ROLLOUT_SECONDS, 0.1)
    with endpoint.namespace.kubernetes.cluster.supervisor.paused("kube-proxy"):
        wait_for("the pod before to go", lambda: serving not in endpoint.pods(), ROLLOUT_SECONDS, 0.1)
        time.sleep(PROXY_LAG_SECONDS)
        assert client.versions[-1] == "two", "the pod that is going still answers"
    endpoint.wait_verified(one)
    endpoint.wait_for_clients("one")
    assert "zeroed" not in client.versions
    record(
        "merged-rollout",
        [
            Figure("merged version, published to verified on the only replica", rollout, "s", "lower"),
            Figure("merged version without effect, published to refused", refusal, "s", "lower"),
            Figure(
                "failed requests during 2 rollouts and a refusal", len(client.failures), "requests", "lower", must=0
            ),
        ],
        time.monotonic() - began,
    )
    assert client.failures == [], "of the rollout that follows a refusal, seen late by the service proxy"


def is_ready(pod: Raw) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions") or []}
    return conditions.get("Ready") == "True"
