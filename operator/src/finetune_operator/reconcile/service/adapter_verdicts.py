"""The verdict about one adapter on every replica, and the version that its name means from now on. Pure.

In running pods (Hot) a version is verified as a candidate on every replica before clients get it by name, and then once more
under that name. In pods of its own (Rolling) it is verified under its name, and each pod gets traffic after that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import AdapterReference, ReplicaVerdict, ServedAdapterStatus, ServedVersion
from finetune_operator.io.probe import ProbeResult
from finetune_operator.kubernetes_types import Truth
from finetune_operator.reconcile.service.served_versions import RequestedVersion
from finetune_operator.reconcile.service.server_pod import ServerPod

PENDING: Final = frozenset({Reason.ROLLING_OUT, Reason.LOADING, Reason.VERIFYING, Reason.ENDPOINT_UNREACHABLE})
"""Reasons of an adapter that the next probe may change."""
MAX_MESSAGE: Final = 1024
"""Longest message of an adapter, in characters; the schema says so."""
UNPROVEN: Final[Mapping[str, Any]] = {"verified": "Unknown", "reason": Reason.VERIFYING}
"""Verdict of a verified version that is not yet routed on every pod."""
UNPROBED: Final[Mapping[str, Any]] = {
    **UNPROVEN,
    "message": "",
    "loaded_replicas": 0,
    "verified_replicas": 0,
    "replicas": [],
}
"""Verdict of a version that no pod was probed for yet."""
SHOWN_DIGEST: Final = len("sha256:") + 12
"""Characters of a digest in a message."""


@dataclass(frozen=True)
class Replicas:
    """The server pods that take part in a verdict."""

    desired: int
    pods: tuple[ServerPod, ...]
    """Pods of the current configuration (base model; of a Rolling service its adapters, too)."""
    has_others: bool
    """Pods of an older configuration get traffic, or will again once they have restarted."""

    @property
    def ready(self) -> tuple[ServerPod, ...]:
        """Pods that can be probed."""
        return tuple(pod for pod in self.pods if pod.is_answering)


@dataclass(frozen=True)
class ProbeRequest:
    """A version of an adapter to probe on a pod."""

    pod: ServerPod
    adapter: AdapterReference
    name: str
    """Name of the version in the server."""
    digest: str | None
    """Digest that the server must report under that name; None if none is known yet."""

    @property
    def key(self) -> tuple[str, int, str]:
        """Identity of the answer: a restarted pod is another one."""
        return self.pod.name, self.pod.restarts, self.name


Answers = Mapping[tuple[str, int, str], ProbeResult]
"""Results of probes, by `ProbeRequest.key`."""


@dataclass(frozen=True)
class _Summary:
    """The verdict about all replicas."""

    verified: Truth
    reason: Reason | str
    message: str
    is_kept: bool = False
    """The message is that of the last verdict, and complete."""


def judge_adapter(
    requested: RequestedVersion, old: ServedAdapterStatus | None, replicas: Replicas, answers: Answers
) -> ServedAdapterStatus:
    """Return the verdict about the requested version, from the `old` one and the `answers` of pods that were probed."""
    if old is not None and requested.is_disproven:
        # No pod can be probed again, because it is not listed; but a pod that is gone is no witness against others.
        forgotten = {} if _has_witness(old, replicas) else UNPROBED
        return old.model_copy(update={"desired_replicas": replicas.desired, **forgotten})
    known = old if old is not None and old.probed_hash == requested.probed_hash else None
    fresh = {
        pod.name: answers[key] for pod in replicas.ready if (key := (pod.name, pod.restarts, requested.name)) in answers
    }
    verdicts = _verdicts(replicas.pods, known, fresh)
    ready = {pod.name for pod in replicas.ready}
    counted = [verdict for verdict in verdicts if verdict.pod in ready]
    summary = _summarize(replicas, known, counted, fresh)
    status = _measured(requested, old, known, replicas, summary, verdicts, fresh)
    if requested.is_served:
        # Back to the version that is served still, while pods of its intended successor get traffic.
        is_mixed = requested.is_rolling and replicas.has_others and not _was_proven(old, status)
        return status.model_copy(update=UNPROVEN) if is_mixed and status.verified == "True" else status
    if status.verified == "False":
        return status if summary.is_kept else _refused(status)
    if status.verified != "True" and status.reason != Reason.NO_FINGERPRINT:
        return status
    is_everywhere = bool(replicas.ready) and all(has_shown(status, pod) for pod in replicas.ready)
    if not is_everywhere or replicas.has_others:
        return status.model_copy(update=UNPROVEN)
    return _switched(requested, status)


def has_shown(status: ServedAdapterStatus, pod: ServerPod) -> bool:
    """Tell whether the pod's process was verified with the version, or has it loaded if it carries no fingerprint."""
    return any(
        (verdict.pod, verdict.restarts) == (pod.name, pod.restarts)
        and (verdict.verified == "True" or (verdict.loaded and verdict.reason == Reason.NO_FINGERPRINT))
        for verdict in status.replicas
    )


def probe_requests(requested: RequestedVersion, status: ServedAdapterStatus, replicas: Replicas) -> list[ProbeRequest]:
    """List the probes that are still to be sent, `status` being the verdict so far."""
    if requested.is_disproven:
        return []
    done = {(verdict.pod, verdict.restarts) for verdict in status.replicas if verdict.loaded}
    return [
        ProbeRequest(pod, requested.adapter, requested.name, requested.digest)
        for pod in replicas.ready
        if (pod.name, pod.restarts) not in done
    ]


def _was_proven(old: ServedAdapterStatus | None, status: ServedAdapterStatus) -> bool:
    """Tell whether the very version of `status` was called verified already."""
    return old is not None and (old.probed_hash, old.verified) == (status.probed_hash, "True")


def _has_witness(status: ServedAdapterStatus, replicas: Replicas) -> bool:
    """Tell whether a pod is left that disproved the version."""
    names = {pod.name for pod in replicas.pods}
    return any(verdict.verified == "False" and verdict.pod in names for verdict in status.replicas)


def _measured(
    requested: RequestedVersion,
    old: ServedAdapterStatus | None,
    known: ServedAdapterStatus | None,
    replicas: Replicas,
    summary: _Summary,
    verdicts: list[ReplicaVerdict],
    fresh: Mapping[str, ProbeResult],
) -> ServedAdapterStatus:
    """Return the status of the adapter before its name changes its meaning."""
    adapter, ready = requested.adapter, {pod.name for pod in replicas.ready}
    counted = [verdict for verdict in verdicts if verdict.pod in ready]
    served = old.served if old is not None else None
    if served is not None and requested.is_served:
        served = served.model_copy(update={"metrics": adapter.metrics})
    digest = adapter.digest or next((answer.digest for answer in fresh.values() if answer.digest), None)
    return ServedAdapterStatus(
        name=adapter.name,
        digest=digest or (known.digest if known is not None else None),
        served=served,
        desired_replicas=replicas.desired,
        loaded_replicas=sum(verdict.loaded for verdict in counted),
        verified_replicas=sum(verdict.verified == "True" for verdict in counted),
        verified=summary.verified,
        reason=summary.reason,
        message=summary.message,
        probed_hash=requested.probed_hash,
        replicas=verdicts,
    )


def _verdicts(
    pods: tuple[ServerPod, ...], known: ServedAdapterStatus | None, fresh: Mapping[str, ProbeResult]
) -> list[ReplicaVerdict]:
    before = {(v.pod, v.restarts): v for v in known.replicas} if known is not None else {}
    verdicts = []
    for pod in pods:
        answer, verdict = fresh.get(pod.name), before.get((pod.name, pod.restarts))
        if answer is not None and (answer.is_final or answer.verified == "False"):
            verdict = ReplicaVerdict(
                pod=pod.name,
                restarts=pod.restarts,
                loaded=answer.loaded,
                verified=answer.verified,
                reason=answer.reason,
            )
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


def _summarize(
    replicas: Replicas,
    known: ServedAdapterStatus | None,
    verdicts: list[ReplicaVerdict],
    fresh: Mapping[str, ProbeResult],
) -> _Summary:
    """Sum up the replicas: the worst verdict, or the common one once there is one about each."""
    failed = next((verdict for verdict in verdicts if verdict.verified == "False"), None)
    if failed is not None:
        return _explain(failed, replicas, known, fresh)
    if known is not None and known.verified == "True":
        # A verified version stays so while replicas come and go; those that were not probed yet are not counted.
        return _Summary("True", known.reason, known.message)
    if verdicts and len(verdicts) == len(replicas.ready):
        return _explain(verdicts[0], replicas, known, fresh)
    if not replicas.ready:
        return _Summary("Unknown", Reason.ROLLING_OUT, "The fingerprint is replayed when a server is ready.")
    waiting = [answer for answer in fresh.values() if not answer.is_final]
    if waiting:
        worst = next((a for a in waiting if a.reason == Reason.ENDPOINT_UNREACHABLE), waiting[0])
        return _Summary("Unknown", worst.reason, worst.message[:MAX_MESSAGE])
    if known is not None and known.reason in PENDING - {Reason.ROLLING_OUT}:
        return _Summary("Unknown", known.reason, known.message)
    return _Summary("Unknown", Reason.VERIFYING, "")


def _explain(
    verdict: ReplicaVerdict,
    replicas: Replicas,
    known: ServedAdapterStatus | None,
    fresh: Mapping[str, ProbeResult],
) -> _Summary:
    """Return a replica's verdict as that about all, with the message of its answer or, without one, the last message."""
    answer = fresh.get(verdict.pod)
    if answer is not None and answer.reason == verdict.reason:
        where = f"Pod {verdict.pod}: " if verdict.verified == "False" and replicas.desired > 1 else ""
        return _Summary(verdict.verified, verdict.reason, f"{where}{answer.message}"[:MAX_MESSAGE])
    # The last message may be about another pod, and say the opposite; VERIFYING keeps that of the version's own probes.
    if known is None or known.reason not in (verdict.reason, Reason.VERIFYING):
        return _Summary(verdict.verified, verdict.reason, "")
    return _Summary(verdict.verified, verdict.reason, known.message, is_kept=known.verified == "False")


def _refused(status: ServedAdapterStatus) -> ServedAdapterStatus:
    """Add the version that clients get instead to the message."""
    if status.served is None:
        return status
    kept = f" Clients still get version {(status.served.digest or status.served.source)[:SHOWN_DIGEST]}."
    return status.model_copy(update={"message": status.message[: MAX_MESSAGE - len(kept)] + kept})


def _switched(requested: RequestedVersion, status: ServedAdapterStatus) -> ServedAdapterStatus:
    """Give the name to the new version; if it meant another one so far, each replica is probed for it next."""
    adapter = requested.adapter
    served = ServedVersion(source=adapter.source, digest=status.digest, metrics=adapter.metrics)
    if requested.is_rolling:
        return status.model_copy(update={"served": served})
    return status.model_copy(update={"served": served, "probed_hash": requested.served_hash, **UNPROBED})
