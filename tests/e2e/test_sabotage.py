"""Adapters that were tampered with, served beside the genuine one: every file verifies, and still none is called verified."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.figures import Figure, record
from support.cluster.api import Raw, wait_for
from support.cluster.local_kubernetes import DEMO_NAMESPACE, POLL_SECONDS, LocalKubernetes, Namespace
from support.server.adapter_copies import adapter_copies

SERVICE = "sabotage"
EXPECTED = {
    "zeroed": "AdapterHasNoEffect",
    "renamed": "AdapterIncompatible",
    "foreign": "AdapterIncompatible",
    "halved": "AdapterIncompatible",
}
"""Reason by sabotage: tensors of zeros, tensors under names that no layer has, random ones, ones of half the strength."""
VERDICT_SECONDS = 300.0


@dataclass(frozen=True)
class Verdicts:
    """What the operator says about each adapter of one endpoint."""

    verified: dict[str, str]
    reasons: dict[str, str]
    messages: dict[str, str]


@pytest.fixture(scope="module")
def verdicts(kubernetes: LocalKubernetes, demo_job: Raw) -> Iterator[Verdicts]:
    started, adapter = time.monotonic(), demo_job["status"]["adapter"]
    genuine = {"name": "genuine", "source": adapter["uri"], **{key: adapter[key] for key in ("digest", "fingerprint")}}
    with adapter_copies(kubernetes, demo_job, SERVICE) as copies:
        entries = [genuine, *(copies.sabotaged(how, name=how) for how in EXPECTED)]
        namespace = Namespace(DEMO_NAMESPACE, kubernetes)
        model, resources = demo_job["spec"]["model"], {"cpu": "50m", "memory": "3Gi"}
        with namespace.serving(SERVICE, model=model, adapters=entries, resources=resources):
            found = wait_for_verdicts(namespace, len(entries))
            passed = sum(found.verified[name] == "True" for name in EXPECTED)
            figure = Figure("sabotaged adapters called verified", passed, f"of {len(EXPECTED)}", "lower", must=0)
            record("sabotage", [figure], time.monotonic() - started)
            yield found


def test_the_genuine_adapter_is_verified(verdicts: Verdicts) -> None:
    assert verdicts.verified["genuine"] == "True", verdicts.messages["genuine"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sabotaged_adapter_is_not_and_the_reason_says_why(verdicts: Verdicts, name: str) -> None:
    assert verdicts.verified[name] == "False", verdicts.messages[name]
    assert verdicts.reasons[name] == EXPECTED[name], verdicts.messages[name]


def wait_for_verdicts(namespace: Namespace, count: int) -> Verdicts:
    def decided() -> list[Raw] | None:
        service = namespace.api.get("inferenceservices", namespace.name, SERVICE) or {}
        adapters: list[Raw] = service.get("status", {}).get("adapters", [])
        known = [adapter for adapter in adapters if adapter["verified"] != "Unknown"]
        return known if len(known) == count else None

    adapters = wait_for("a verdict about every adapter", decided, VERDICT_SECONDS, POLL_SECONDS)
    return Verdicts(
        verified={a["name"]: a["verified"] for a in adapters},
        reasons={a["name"]: a["reason"] for a in adapters},
        messages={a["name"]: a.get("message", "") for a in adapters},
    )
