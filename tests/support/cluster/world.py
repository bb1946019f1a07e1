"""One test's namespace in the API server ring, with everything around it."""

from dataclasses import dataclass
from pathlib import Path

from lab.kubernetes.controlplane import ControlPlane
from support.cluster.api import Api, Raw, wait_for
from support.cluster.fake_endpoint import FakeEndpoint
from support.cluster.kubelet_actor import KubeletActor
from support.cluster.operator_process import OperatorProcess
from support.objects.factories import a_finetune_job

REPOSITORY = Path(__file__).resolve().parents[3]
OPERATOR_USER = "finetune-operator"
"""Whom the operator authenticates as in this ring."""


@dataclass(frozen=True)
class World:
    """One test's namespace with everything around it."""

    namespace: str
    api: Api
    kubelet: KubeletActor
    operator: OperatorProcess
    endpoint: FakeEndpoint
    plane: ControlPlane

    def submit(self, name: str = "tone", **spec: object) -> Raw:
        return self.api.create("finetunejobs", a_finetune_job(name, self.namespace, **spec))

    def job(self, name: str = "tone") -> Raw | None:
        return self.api.get("finetunejobs", self.namespace, name)

    def status(self, name: str = "tone") -> Raw:
        return (self.job(name) or {}).get("status") or {}

    def wait_for_phase(self, *phases: str, name: str = "tone", seconds: float = 30) -> Raw:
        try:
            wait_for(f"phase {phases}", lambda: self.status(name).get("phase") in phases, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; status is {self.status(name)}; see {self.operator.log}") from None
        return self.status(name)

    def condition(self, kind: str, name: str = "tone") -> Raw:
        return next((c for c in self.status(name).get("conditions") or [] if c["type"] == kind), {})

    def edit(self, name: str = "tone", **spec: object) -> Raw:
        return self.api.patch("finetunejobs", self.namespace, name, {"spec": spec})

    def jobs(self) -> list[Raw]:
        return self.api.list("jobs", self.namespace)

    def pods(self) -> list[Raw]:
        return self.api.list("pods", self.namespace)

    def live_pods(self) -> list[Raw]:
        return [p for p in self.pods() if p["status"].get("phase") not in ("Succeeded", "Failed")]

    def writes(self) -> list[Raw]:
        """The operator's writes in this namespace so far, from the audit log."""
        return [
            event
            for event in self.plane.audit_events()
            if event["user"].get("username") == OPERATOR_USER
            and event["verb"] in ("create", "update", "patch", "delete", "deletecollection")
            and event["objectRef"].get("namespace") == self.namespace
        ]
