"""Small disasters on the real cluster: whatever is killed, a job ends with exactly one whole adapter."""

from collections.abc import Iterator

import pytest

from finetune_api.artifacts import read_verified
from support.cluster.api import Raw
from support.cluster.local_kubernetes import SMALL, LocalKubernetes, Namespace

LONG = {"maxSteps": 800, "batchSize": 64, "learningRate": 0.001}
"""Some 20 seconds of training on two fast, idle cores: long enough to be disturbed in the middle, of which progress tells five
seconds late."""


@pytest.fixture(scope="module")
def namespace(kubernetes: LocalKubernetes) -> Iterator[Namespace]:
    with kubernetes.namespace("disasters") as namespace:
        yield namespace


def assert_one_adapter(namespace: Namespace, job: str, status: Raw) -> None:
    folders = namespace.adapter_folders(job)
    assert len(folders) == 1, folders
    _, digest = read_verified(folders[0])
    assert status["adapter"]["digest"] == digest


def test_an_operator_that_is_killed_three_times_loses_and_doubles_nothing(
    namespace: Namespace, kubernetes: LocalKubernetes
) -> None:
    job = "operator-killed"
    namespace.submit(job, hyperparameters=LONG, serve={"resources": SMALL})
    kubernetes.kill_system_pod("operator")  # about when the training Job is made
    namespace.wait_for_step(job)
    kubernetes.kill_system_pod("operator")  # in the middle of training
    namespace.wait_for_phase(job, "Publishing", "Deploying", "Verifying")
    kubernetes.kill_system_pod("operator")  # in the middle of the rollout
    status = namespace.wait_for_phase(job, "Succeeded")
    assert status["attempt"] == 1
    assert len(namespace.pods_of(job)) == 1
    assert status["serving"]["verified"]
    assert_one_adapter(namespace, job, status)


def test_a_redis_that_is_killed_during_training_costs_nothing_but_fresh_progress(
    namespace: Namespace, kubernetes: LocalKubernetes
) -> None:
    job = "redis-killed"
    namespace.submit(job, hyperparameters=LONG)
    namespace.wait_for_step(job)
    kubernetes.kill_system_pod("redis")
    status = namespace.wait_for_phase(job, "Succeeded")
    assert status["attempt"] == 1
    assert status["failedAttempts"] == 0
    assert_one_adapter(namespace, job, status)


def test_a_training_pod_that_is_deleted_is_followed_by_one_that_goes_on(namespace: Namespace) -> None:
    job = "pod-deleted"
    namespace.submit(job, hyperparameters=LONG, checkpoint={"everySteps": 50})
    namespace.wait_for_step(job, step=60)
    (pod,) = namespace.pods_of(job)
    namespace.api.delete("pods", namespace.name, pod["metadata"]["name"])
    status = namespace.wait_for_phase(job, "Succeeded")
    assert status["attempt"] == 2
    assert status["failedAttempts"] == 0
    assert_one_adapter(namespace, job, status)
