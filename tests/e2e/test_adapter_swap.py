"""New versions of an adapter while clients ask for it: how long until their first token, and what it does to requests."""

import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from lab.figures import Figure, record
from support.cluster.api import Raw, wait_for
from support.cluster.local_kubernetes import DEMO_NAMESPACE, LocalKubernetes, Namespace
from support.server.adapter_copies import adapter_copies

SERVICE = "swaps"
ADAPTER = "tickets"
SWAPS = 20
IDLE_SWAPS = 5
LOAD = 2
"""Streams that are always on their way: more than two cores can answer at once."""
LONGEST_SECONDS = 120.0
"""A version that is not served by then never will be."""
PROMPT = "My parcel has not arrived."


@dataclass
class Endpoint:
    """One server pod behind its Service, with two versions of an adapter on its claim."""

    namespace: Namespace
    url: str
    versions: list[Raw]
    """Entries of spec.adapters, with the same weights and other digests."""
    broken: Raw
    """A version that has no effect."""
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=120))

    def publish(self, version: Raw) -> None:
        spec = {"spec": {"adapters": [version]}}
        self.namespace.api.patch("inferenceservices", DEMO_NAMESPACE, SERVICE, spec)

    def status(self) -> Raw:
        found = self.namespace.api.get("inferenceservices", DEMO_NAMESPACE, SERVICE) or {}
        return (found.get("status", {}).get("adapters") or [{}])[0]

    def wait_verified(self, version: Raw) -> None:
        def is_verified() -> bool:
            status = self.status()
            return status.get("digest") == version["digest"] and status["verified"] == "True"

        wait_for("the version to be verified", is_verified, LONGEST_SECONDS, 0.1)

    def digest(self) -> str | None:
        answer = self.client.get(f"{self.url}/v1/models/{ADAPTER}")
        return answer.json()["digest"] if answer.status_code == 200 else None

    def ask(self, max_tokens: int, client: httpx.Client | None = None) -> float:
        """Monotonic seconds of the first token of an answer that was read to its end."""
        body = {"model": ADAPTER, "prompt": PROMPT, "max_tokens": max_tokens, "stream": True, "temperature": 0}
        with (client or self.client).stream("POST", f"{self.url}/v1/completions", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()
            next(lines)
            first = time.monotonic()
            assert "data: [DONE]" in list(lines), "the answer was cut off"
        return first

    def swap(self, version: Raw) -> float:
        """Seconds from publishing a version to the first token that it answers with."""
        started = time.monotonic()
        self.publish(version)
        wait_for("the version", lambda: self.digest() == version["digest"], LONGEST_SECONDS, 0.02)
        return self.ask(max_tokens=1) - started

    def pods(self) -> set[tuple[str, int]]:
        pods = self.namespace.api.list("pods", DEMO_NAMESPACE, f"finetune.dev/service-name={SERVICE}")
        return {(p["metadata"]["uid"], p["status"]["containerStatuses"][0]["restartCount"]) for p in pods}


@pytest.fixture(scope="module")
def endpoint(kubernetes: LocalKubernetes, demo_job: Raw) -> Iterator[Endpoint]:
    with adapter_copies(kubernetes, demo_job, SERVICE) as copies:
        versions = [copies.renewed(folder, ADAPTER) for folder in ("one", "two")]
        broken = copies.sabotaged("zeroed", ADAPTER)
        namespace = Namespace(DEMO_NAMESPACE, kubernetes)
        model, resources = demo_job["spec"]["model"], {"cpu": "200m", "memory": "3Gi"}
        with namespace.serving(SERVICE, model=model, adapterClaim=copies.claim, resources=resources) as url:
            wait_for("the endpoint", lambda: is_ready(namespace), 300, 0.5)
            yield Endpoint(namespace, url, versions, broken)


def is_ready(namespace: Namespace) -> bool:
    service = namespace.api.get("inferenceservices", DEMO_NAMESPACE, SERVICE) or {}
    return bool(service.get("status", {}).get("readyReplicas"))


def test_versions_are_swapped_under_load_without_a_restart_or_a_failed_request(endpoint: Endpoint) -> None:
    began = time.monotonic()
    pods = endpoint.pods()
    added = endpoint.swap(endpoint.versions[0])
    endpoint.wait_verified(endpoint.versions[0])
    idle = []
    for number in range(IDLE_SWAPS):
        idle.append(endpoint.swap(endpoint.versions[(number + 1) % 2]))
        endpoint.wait_verified(endpoint.versions[(number + 1) % 2])
    done, answers, failures = threading.Event(), [], []

    def load() -> None:
        with httpx.Client(timeout=120) as client:
            while not done.is_set():
                try:
                    answers.append(endpoint.ask(max_tokens=16, client=client))
                except (AssertionError, httpx.HTTPError) as error:
                    failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(LOAD)]
    for thread in threads:
        thread.start()
    loaded = []
    try:
        for number in range(SWAPS):
            version = endpoint.versions[(number + IDLE_SWAPS + 1) % 2]
            loaded.append(endpoint.swap(version))
            endpoint.wait_verified(version)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    record(
        "adapter-swap",
        [
            Figure("first adapter of a running server, published to first token", added, "s", "lower", 2, 0.5),
            seconds("new version, published to first token, idle", idle),
            seconds(f"new version, published to first token, {LOAD} streams", loaded),
            Figure(f"failed requests during {SWAPS} swaps", len(failures), "requests", "lower", 0),
            Figure(f"answered requests during {SWAPS} swaps", len(answers), "requests", "higher", 1),
            Figure("pods or containers started", len(endpoint.pods() - pods), "", "lower", 0),
        ],
        time.monotonic() - began,
    )
    assert failures == []
    assert endpoint.pods() == pods
    assert answers


def seconds(name: str, values: list[float]) -> Figure:
    middle = statistics.median(values)
    return Figure(name, middle, "s", "lower", 2, 0.5, spread=[min(values), max(values)])


def test_a_version_without_effect_never_gets_the_traffic(endpoint: Endpoint) -> None:
    endpoint.publish(endpoint.versions[0])
    endpoint.wait_verified(endpoint.versions[0])
    endpoint.publish(endpoint.broken)

    def is_refused() -> bool:
        assert endpoint.digest() == endpoint.versions[0]["digest"]
        return bool(endpoint.status().get("reason") == "AdapterHasNoEffect")

    wait_for("the refusal", is_refused, LONGEST_SECONDS, 0.02)
    assert endpoint.status()["served"]["digest"] == endpoint.versions[0]["digest"]
    assert endpoint.digest() == endpoint.versions[0]["digest"]
