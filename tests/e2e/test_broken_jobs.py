"""Twelve broken jobs, twelve exact answers: six from the API server, six from `validate`, and nobody else is harmed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from lab.figures import Figure, record
from lab.kubernetes.api import ApiError
from support.cluster.api import Raw
from support.cluster.local_kubernetes import TEST_MODELS, LocalKubernetes, Namespace

VERDICT_SECONDS = 30.0
"""How long a pod may run before a broken job is called broken."""


@dataclass(frozen=True)
class Broken:
    """A job that the API server accepts and `validate` does not."""

    spec: Raw
    reason: str
    words: tuple[str, ...]
    """Must all be in the message: the field or row, and what was found."""


GOOD_ROW = '{"prompt": "a", "completion": "b"}\n'
BROKEN = {
    "dataset-missing": Broken(
        {"dataset": {"source": "configmap://no-such-rows/train.jsonl"}}, "DatasetNotFound", ("no-such-rows",)
    ),
    "row-malformed": Broken(
        {"dataset": {"inline": GOOD_ROW + '{"prompt": "c"}\n', "format": "prompt-completion"}},
        "DatasetInvalid",
        ("line 2", "completion"),
    ),
    "dataset-empty": Broken({"dataset": {"inline": "\n\n"}}, "DatasetInvalid", ("empty",)),
    "model-missing": Broken(
        {"model": {"source": f"pvc://models/{TEST_MODELS}/no-such-model"}}, "ModelNotFound", ("no-such-model",)
    ),
    "no-model": Broken({"model": {"source": f"pvc://models/{TEST_MODELS}/nonsense"}}, "ModelInvalid", ("nonsense",)),
    "no-such-module": Broken(
        {"method": {"lora": {"targetModules": ["w_nowhere"]}}}, "TargetModulesNotFound", ("w_nowhere", "q_proj")
    ),
}

REFUSED: dict[str, tuple[Raw, str]] = {
    "unknown field": ({"learningRate": 0.1}, 'unknown field "spec.learningRate"'),
    "rank 0": ({"method": {"lora": {"rank": 0}}}, "spec.method.lora.rank"),
    "negative rate": ({"hyperparameters": {"learningRate": -0.1}}, "spec.hyperparameters.learningRate"),
    "epochs and steps": ({"hyperparameters": {"epochs": 1, "maxSteps": 1}}, "set at most one of epochs and maxSteps"),
    "path outside": ({"model": {"source": "pvc://models/../secrets"}}, "a source cannot contain '..'"),
}


@dataclass
class Running:
    """The namespace in which the six run beside a healthy job, one after the other, and how long each verdict took."""

    namespace: Namespace
    seconds: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def running(kubernetes: LocalKubernetes) -> Iterator[Running]:
    started = time.monotonic()
    with kubernetes.namespace("broken") as namespace:
        running = Running(namespace)
        namespace.submit("healthy")
        yield running
    if running.seconds:
        slowest = max(running.seconds.values())
        figure = Figure(
            "broken job: pod start to verdict, slowest of six", round(slowest, 1), "s", "lower", VERDICT_SECONDS
        )
        record("broken_jobs", [figure], time.monotonic() - started)


@pytest.mark.parametrize("case", REFUSED)
def test_the_api_server_refuses_what_the_schema_forbids(running: Running, case: str) -> None:
    spec, words = REFUSED[case]
    with pytest.raises(ApiError) as refusal:
        running.namespace.submit("refused", **spec)
    assert words in str(refusal.value)


def test_a_running_job_cannot_be_edited(running: Running) -> None:
    change = {"spec": {"hyperparameters": {"learningRate": 0.5}}}
    with pytest.raises(ApiError, match=r"spec\.hyperparameters is immutable"):
        running.namespace.api.patch("finetunejobs", running.namespace.name, "healthy", change)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_job_fails_once_and_says_what_to_change(running: Running, name: str) -> None:
    broken = BROKEN[name]
    # One at a time: six pods that import torch at once would measure the machine's cores, not the verdict.
    running.namespace.submit(name, **broken.spec)
    status = running.namespace.wait_for_phase(name, "Failed")
    assert status["reason"] == broken.reason, status["message"]
    assert [word for word in broken.words if word not in status["message"]] == [], status["message"]
    assert status["attempt"] <= 1
    assert condition(status, "Validated")["reason"] == broken.reason
    assert status.get("usage", {}).get("attemptSeconds", 0) == 0
    assert [pod for pod in running.namespace.pods_of(name) if starts_of(pod, "containerStatuses")] == []
    seconds = running.seconds[name] = seconds_to_verdict(running.namespace, name, status)
    assert seconds <= VERDICT_SECONDS


def test_a_healthy_job_beside_them_succeeds(running: Running) -> None:
    status = running.namespace.wait_for_phase("healthy", "Succeeded")
    assert status["attempt"] == 1
    validated = condition(status, "Validated")
    assert (validated["status"], validated["reason"]) == ("True", "Accepted")
    assert validated["message"].startswith("Training: 64 rows, ")
    assert len(running.namespace.adapter_folders("healthy")) == 1


def seconds_to_verdict(namespace: Namespace, job: str, status: Raw) -> float:
    """From the start of the pod's first container to the job's end; 0 if no container had to start."""
    starts = [start for pod in namespace.pods_of(job) for start in starts_of(pod, "initContainerStatuses")]
    return (parse(status["completionTime"]) - parse(min(starts))).total_seconds() if starts else 0.0


def starts_of(pod: Raw, containers: str) -> list[str]:
    """When the containers of this kind started, of those that did."""
    states = [container["state"] for container in pod["status"].get(containers, [])]
    ran: list[dict[str, Any]] = [state.get("terminated") or state.get("running") or {} for state in states]
    return [str(state["startedAt"]) for state in ran if state.get("startedAt")]


def condition(status: Raw, kind: str) -> Raw:
    return next(c for c in status["conditions"] if c["type"] == kind)


def parse(moment: str) -> datetime:
    return datetime.fromisoformat(moment)
