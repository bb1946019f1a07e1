"""The rights that the code needs, declared next to it. The chart renders the same rules; a test compares the two.

No wildcard, no secrets, no nodes, no service accounts, no roles. Each verb is used by a line of `cluster`, `handlers` or
kopf: the API server tests run with exactly these rules and fail if one is missing or never used.
"""

from dataclasses import dataclass
from typing import Final

from finetune_api.contract import FINETUNE_JOB_PLURAL, GROUP, INFERENCE_SERVICE_PLURAL


@dataclass(frozen=True)
class Rule:
    """One rule of a Role or ClusterRole."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str


FRAMEWORK: Final = (
    Rule(GROUP, FINETUNE_JOB_PLURAL, ("list", "watch"), "kopf's watch and our own resync"),
    Rule(GROUP, INFERENCE_SERVICE_PLURAL, ("list", "watch"), "kopf's watch and our own resync"),
    Rule("batch", "jobs", ("list", "watch"), "kopf's watch; the children of a job at decision time"),
    Rule("", "pods", ("list", "watch"), "kopf's watch; the pods of a job at decision time"),
    Rule("apps", "deployments", ("list", "watch"), "kopf's watch"),
)
"""What watching needs. kopf's discovery is open to every authenticated user."""

APPLICATION: Final = (
    Rule(GROUP, FINETUNE_JOB_PLURAL, ("get", "delete"), "fresh state; ttlSecondsAfterFinished"),
    Rule(GROUP, f"{FINETUNE_JOB_PLURAL}/status", ("patch",), "status"),
    Rule(GROUP, INFERENCE_SERVICE_PLURAL, ("get", "create", "patch", "delete"), "the endpoint of a job with serve"),
    Rule(GROUP, f"{INFERENCE_SERVICE_PLURAL}/status", ("patch",), "status"),
    Rule("batch", "jobs", ("get", "create", "delete"), "one Job per attempt; suspend and cancel delete it"),
    Rule("apps", "deployments", ("get", "create", "patch"), "server pods"),
    Rule("", "services", ("get", "create", "patch"), "the endpoint's address"),
    Rule("", "configmaps", ("get", "create", "patch"), "the list of an endpoint's adapters"),
    Rule("", "pods", ("patch",), "an annotation on server pods, so that they see a new list at once"),
    Rule("", "pods/status", ("patch",), "the readiness gate of server pods that are proven before they get traffic"),
    Rule("policy", "poddisruptionbudgets", ("get", "create", "patch", "delete"), "endpoints with several replicas"),
    Rule("autoscaling", "horizontalpodautoscalers", ("get", "create", "patch", "delete"), "endpoints that scale"),
    Rule("", "persistentvolumeclaims", ("get", "create"), "missing claims are reported; the default one is made"),
    Rule("events.k8s.io", "events", ("create",), "what happened, for kubectl describe"),
)
"""What the reconcilers do."""


def rules() -> list[Rule]:
    """All rules, one per group and resource, verbs sorted."""
    verbs: dict[tuple[str, str], set[str]] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for rule in (*FRAMEWORK, *APPLICATION):
        key = (rule.group, rule.resource)
        verbs.setdefault(key, set()).update(rule.verbs)
        reasons.setdefault(key, []).append(rule.why)
    return [Rule(*key, tuple(sorted(verbs[key])), "; ".join(reasons[key])) for key in sorted(verbs)]
