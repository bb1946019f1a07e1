"""What a kubelet and a scheduler would do to pods, as far as the API server can tell, without running anything.

Each namespace has a script: how its training attempts go, one `Run` after the other. Server pods become ready.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from finetune_api.outcome import CommittedAdapter, Outcome, Result
from finetune_api.reasons import Reason
from lab.kubernetes.api import ApiError
from support.cluster.api import STRATEGIC_PATCH, Api, Raw

NODE = "actor"
SELECTOR = "app.kubernetes.io/managed-by=finetune-operator"
DIGEST = "sha256:" + "a" * 64


ACCEPTED = Outcome(result=Result.SUCCEEDED, reason=Reason.ACCEPTED, message="Training: 8 rows, 120 tokens.")


@dataclass
class Run:
    """How one training attempt goes: `validate` first, and the trainer if that accepts."""

    outcome: Outcome | None = None
    message: str = ""
    """Termination message if there is no outcome."""
    exit_code: int = 0
    ended_reason: str = ""
    """containerStatuses[].state.terminated.reason; Completed or Error by default."""
    seconds: float = 0.2
    """Running time; None-like infinity means until the pod is deleted."""
    waiting: tuple[str, str] | None = None
    """The container never starts: reason and message."""
    unschedulable: str = ""
    """The pod never gets a node: the scheduler's message."""
    interrupted: Outcome | None = None
    """What the trainer says when its pod is deleted."""
    validation: Outcome = ACCEPTED
    """What `validate` says; anything but success is the end of the pod."""
    validation_exit_code: int = 0
    validation_seconds: float = 0.1


FOREVER = float("inf")


def succeeding(**fields: Any) -> Run:
    adapter = CommittedAdapter(path="tone", digest=DIGEST, size_bytes=1234, **fields)
    return Run(
        Outcome(result=Result.SUCCEEDED, reason=Reason.TRAINED, step=10, metrics={"train_loss": 0.5}, adapter=adapter)
    )


def refusing(reason: Reason, *, retryable: bool, exit_code: int, message: str = "what is wrong") -> Run:
    """An attempt that ends in `validate`."""
    outcome = Outcome(result=Result.FAILED, reason=reason, message=message, retryable=retryable)
    return Run(validation=outcome, validation_exit_code=exit_code)


def failing(reason: Reason, *, retryable: bool, exit_code: int = 1, message: str = "what happened") -> Run:
    outcome = Outcome(result=Result.FAILED, reason=reason, message=message, retryable=retryable)
    return Run(outcome, exit_code=exit_code)


@dataclass
class _Pod:
    run: Run | None
    stage: str = "new"
    since: float = field(default_factory=time.monotonic)
    started: str = ""


class KubeletActor:
    """A thread that plays the node. Scripts are taken in the order of pod creation within a namespace."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.server_exits: dict[str, str] = {}
        """Namespaces whose server pods crash, and what they say."""
        self._scripts: dict[str, list[Run]] = {}
        self._pods: dict[str, _Pod] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="kubelet-actor")

    def script(self, namespace: str, *runs: Run) -> None:
        self._scripts.setdefault(namespace, []).extend(runs)

    def finish_now(self, uid: str) -> None:
        """End a pod that would run for ever, as its script says."""
        pod = self._pods[uid]
        assert pod.run is not None
        pod.run = replace(pod.run, seconds=0.0)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @contextmanager
    def running(self) -> Iterator["KubeletActor"]:
        self._register_node()
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(10)

    def _run(self) -> None:
        renewed = 0.0
        while not self._stop.wait(0.04):
            try:
                if time.monotonic() - renewed > 5:
                    self._renew_lease()
                    renewed = time.monotonic()
                for pod in self.api.list("pods", selector=SELECTOR):
                    self._step_or_leave(pod)
            except (ApiError, OSError):
                # The API server is being restarted by a test; a kubelet would wait as well.
                time.sleep(0.2)

    def _step_or_leave(self, raw: Raw) -> None:
        """One pod that the API server refuses to change (it may be gone by now) is no reason to leave the others.

        A stage is entered only after its request went through, so whatever failed is done again on the next round.
        """
        with suppress(ApiError):
            self._step(raw)

    def _step(self, raw: Raw) -> None:
        uid, namespace = raw["metadata"]["uid"], raw["metadata"]["namespace"]
        if "batch.kubernetes.io/job-name" not in raw["metadata"]["labels"]:
            self._step_server(raw)
            return
        if uid not in self._pods:
            runs = self._scripts.get(namespace) or []
            self._pods[uid] = _Pod(runs.pop(0) if runs else None)
        pod = self._pods[uid]
        if pod.run is None:
            return
        if "deletionTimestamp" in raw["metadata"]:
            self._stop_pod(raw, pod, pod.run)
        elif pod.stage == "new":
            self._start(raw, pod, pod.run)
        elif pod.stage == "validating" and time.monotonic() - pod.since >= pod.run.validation_seconds:
            self._end_validation(raw, pod, pod.run.validation, pod.run.validation_exit_code)
        elif pod.stage == "validated":
            self._start_trainer(raw, pod)
        elif pod.stage == "running" and time.monotonic() - pod.since >= pod.run.seconds:
            self._finish(raw, pod, pod.run)

    def _start(self, raw: Raw, pod: _Pod, run: Run) -> None:
        if run.unschedulable:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self._patch(raw, {"conditions": [{**condition, "message": run.unschedulable}]})
            pod.stage = "waiting"
            return
        self._bind(raw)
        scheduled = {"type": "PodScheduled", "status": "True"}
        initial = {"conditions": [scheduled], "containerStatuses": [_container(raw, INITIALIZING)]}
        if run.waiting:
            state = {"waiting": {"reason": run.waiting[0], "message": run.waiting[1]}}
            self._patch(raw, {**initial, "initContainerStatuses": [_init_container(raw, state)]})
            pod.stage = "waiting"
            return
        pod.started = _now()
        state = {"running": {"startedAt": pod.started}}
        self._patch(raw, {**initial, "initContainerStatuses": [_init_container(raw, state)]})
        pod.stage, pod.since = "validating", time.monotonic()

    def _end_validation(self, raw: Raw, pod: _Pod, outcome: Outcome, exit_code: int) -> None:
        """The trainer of a pod whose init container failed stays `PodInitializing` for ever."""
        state = _terminated(pod.started, exit_code, "", outcome.to_termination_message())
        phase = {"phase": "Failed"} if exit_code else {}
        self._patch(raw, {**phase, "initContainerStatuses": [_init_container(raw, state)]})
        pod.stage, pod.since = "finished" if exit_code else "validated", time.monotonic()

    def _start_trainer(self, raw: Raw, pod: _Pod) -> None:
        started = _now()
        state = {"running": {"startedAt": started}}
        self._patch(raw, {"phase": "Running", "containerStatuses": [_container(raw, state)]})
        pod.stage, pod.since, pod.started = "running", time.monotonic(), started

    def _finish(self, raw: Raw, pod: _Pod, run: Run) -> None:
        message = run.outcome.to_termination_message() if run.outcome else run.message
        self._terminate(raw, pod, run.exit_code, run.ended_reason, message)
        pod.stage = "finished"

    def _terminate(self, raw: Raw, pod: _Pod, exit_code: int, reason: str, message: str) -> None:
        state = _terminated(pod.started, exit_code, reason, message)
        phase = "Failed" if exit_code else "Succeeded"
        self._patch(raw, {"phase": phase, "containerStatuses": [_container(raw, state)]})

    def _stop_pod(self, raw: Raw, pod: _Pod, run: Run) -> None:
        """SIGTERM, a moment, the final status, and the object is gone."""
        if pod.stage == "validating":
            stopped = Outcome(result=Result.INTERRUPTED, reason=Reason.INTERRUPTED, message="stopped", retryable=True)
            self._end_validation(raw, pod, stopped, 143)
            return
        if pod.stage == "running":
            message = run.interrupted.to_termination_message() if run.interrupted else ""
            self._terminate(raw, pod, 143, "", message)
            pod.stage, pod.since = "finished", time.monotonic()
            return
        if pod.stage != "gone" and (pod.stage != "finished" or time.monotonic() - pod.since > 0.1):
            self.api.delete("pods", raw["metadata"]["namespace"], raw["metadata"]["name"], gracePeriodSeconds=0)
            pod.stage = "gone"

    def _step_server(self, raw: Raw) -> None:
        uid, namespace = raw["metadata"]["uid"], raw["metadata"]["namespace"]
        if "deletionTimestamp" in raw["metadata"]:
            self.api.delete("pods", namespace, raw["metadata"]["name"], gracePeriodSeconds=0)
            return
        if uid in self._pods:
            self._follow_gates(raw)
            return
        self._bind(raw)
        scheduled = {"type": "PodScheduled", "status": "True"}
        if words := self.server_exits.get(namespace):
            state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
            last = {"terminated": {"exitCode": 4, "reason": "Error", "message": words}}
            container = {**_container(raw, state), "lastState": last, "restartCount": 3}
            self._patch(raw, {"phase": "Running", "conditions": [scheduled], "containerStatuses": [container]})
            self._pods[uid] = _Pod(None)
            return
        answering = _answering(raw, restarts=0)
        conditions = [scheduled, *answering["conditions"]]
        self._patch(raw, {"phase": "Running", **answering, "conditions": conditions})
        self._pods[uid] = _Pod(None)

    def restart_server(self, raw: Raw, seconds: float = 1.0) -> None:
        """A server that crashes, and answers again after a while."""
        restarts = raw["status"]["containerStatuses"][0]["restartCount"] + 1
        starting = {**_container(raw, {"running": {"startedAt": _now()}}), "restartCount": restarts}
        waiting = [_condition("ContainersReady", is_true=False), _condition("Ready", is_true=False)]
        self._patch(raw, {"conditions": waiting, "containerStatuses": [starting]})
        time.sleep(seconds)
        self._patch(raw, _answering(raw, restarts))

    def _follow_gates(self, raw: Raw) -> None:
        """A pod is ready when its containers are, and every gate is open."""
        conditions = {c["type"]: c["status"] == "True" for c in raw["status"].get("conditions") or []}
        gates = [gate["conditionType"] for gate in raw["spec"].get("readinessGates") or []]
        is_ready = all(conditions.get(kind) for kind in ("ContainersReady", *gates))
        if is_ready != conditions.get("Ready", False):
            self._patch(raw, {"conditions": [_condition("Ready", is_true=is_ready)]})

    def _bind(self, raw: Raw) -> None:
        if raw["spec"].get("nodeName"):
            return
        namespace, name = raw["metadata"]["namespace"], raw["metadata"]["name"]
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        }
        self.api.client.post(self.api.path("pods", namespace, name, "binding"), body)

    def _patch(self, raw: Raw, status: Raw) -> None:
        namespace, name = raw["metadata"]["namespace"], raw["metadata"]["name"]
        self.api.patch("pods", namespace, name, {"status": status}, "status", STRATEGIC_PATCH)

    def _register_node(self) -> None:
        self.api.create("nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "",
            "lastHeartbeatTime": _now(),
            "lastTransitionTime": _now(),
        }
        self.api.patch("nodes", None, NODE, {"status": {"conditions": [condition]}}, "status")
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE}}
        lease["metadata"]["namespace"] = "kube-node-lease"
        self.api.create("leases", {**lease, "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40}})

    def _renew_lease(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.api.patch("leases", "kube-node-lease", NODE, {"spec": {"renewTime": now}})


INITIALIZING = {"waiting": {"reason": "PodInitializing"}}
"""State of a container that waits for an init container."""


def _container(raw: Raw, state: Raw) -> Raw:
    return _status(raw["spec"]["containers"][0], state)


def _answering(raw: Raw, restarts: int) -> Raw:
    """Of a server that answers; whether it is ready is up to its gates."""
    container = {**_container(raw, {"running": {"startedAt": _now()}}), "ready": True, "started": True}
    conditions = [_condition("ContainersReady", is_true=True)]
    return {"conditions": conditions, "containerStatuses": [{**container, "restartCount": restarts}]}


def _condition(kind: str, *, is_true: bool) -> Raw:
    return {"type": kind, "status": "True" if is_true else "False", "lastTransitionTime": _now()}


def _init_container(raw: Raw, state: Raw) -> Raw:
    return _status(raw["spec"]["initContainers"][0], state)


def _terminated(started: str, exit_code: int, reason: str, message: str) -> Raw:
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Error" if exit_code else "Completed"),
            "message": message,
            "startedAt": started or _now(),
            "finishedAt": _now(),
        }
    }


def _status(container: Raw, state: Raw) -> Raw:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
