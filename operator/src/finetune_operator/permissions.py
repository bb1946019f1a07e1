"""RBAC rules that the operator needs. The chart renders the same rules; a test compares the two.

No wildcards, secrets, nodes, service accounts or roles. Each verb is used by
`io.cluster`: the API server tests run with exactly these rules and fail if one is missing or unused.
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
    Rule(GROUP, FINETUNE_JOB_PLURAL, ("list", "watch"), "the cache"),
    Rule(GROUP, INFERENCE_SERVICE_PLURAL, ("list", "watch"), "the cache"),
    Rule("batch", "jobs", ("list", "watch"), "the cache; the children of a job before another attempt starts"),
    Rule("", "pods", ("list", "watch"), "the cache; the pods of a job before another attempt starts"),
    Rule("apps", "deployments", ("list", "watch"), "the cache"),
)
"""Rules for watching."""

APPLICATION: Final = (
    Rule(GROUP, FINETUNE_JOB_PLURAL, ("get", "delete"), "the state before an attempt starts; ttlSecondsAfterFinished"),
    Rule(GROUP, f"{FINETUNE_JOB_PLURAL}/status", ("patch",), "status"),
    Rule(GROUP, INFERENCE_SERVICE_PLURAL, ("get", "create", "patch", "delete"), "the endpoint of a job with serve"),
    Rule(GROUP, f"{INFERENCE_SERVICE_PLURAL}/status", ("patch",), "status"),
    Rule("batch", "jobs", ("get", "create", "delete"), "one Job per attempt; suspend and cancel delete it"),
    Rule("apps", "deployments", ("get", "create", "patch"), "server pods"),
    Rule("", "services", ("get", "create", "patch"), "the endpoint's address"),
    Rule("", "configmaps", ("get", "create", "patch"), "the list of an endpoint's adapters"),
    Rule(
        "",
        "pods",
        ("patch",),
        "an annotation on server pods, which makes the kubelet refresh the list of adapters at once",
    ),
    Rule("", "pods/status", ("patch",), "the readiness gate of server pods that are verified before they get traffic"),
    Rule("policy", "poddisruptionbudgets", ("get", "create", "patch", "delete"), "endpoints with several replicas"),
    Rule("autoscaling", "horizontalpodautoscalers", ("get", "create", "patch", "delete"), "endpoints with autoscaling"),
    Rule("", "persistentvolumeclaims", ("get", "create"), "missing claims are reported; the default one is created"),
    Rule("events.k8s.io", "events", ("create",), "events for kubectl describe"),
)
"""Rules for the reconcilers."""


def rules() -> list[Rule]:
    """Return all rules, one per group and resource, with sorted verbs."""
    verbs: dict[tuple[str, str], set[str]] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for rule in (*FRAMEWORK, *APPLICATION):
        key = (rule.group, rule.resource)
        verbs.setdefault(key, set()).update(rule.verbs)
        reasons.setdefault(key, []).append(rule.why)
    return [Rule(*key, tuple(sorted(verbs[key])), "; ".join(reasons[key])) for key in sorted(verbs)]
