"""What is known about one adapter on every replica, and which version its name means from now on. Pure.

In running pods (Hot) a version is proven as a candidate on every replica before clients get it by name, and then once more
under that name. In pods of its own (Rolling) it is proven under its name, and each pod gets traffic once that is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import (
    AdapterReference,
    InferenceService,
    ReplicaVerdict,
    ServedAdapterStatus,
    ServedVersion,
)
from finetune_operator.io.probe import ProbeResult
from finetune_operator.reconcile.conditions import Truth
from finetune_operator.reconcile.views import PodView
from finetune_operator.resources.adapter_list import (
    is_disproven,
    is_rolling,
    is_served,
    probed_hash,
    probed_name,
)

PENDING: Final = frozenset({Reason.ROLLING_OUT, Reason.LOADING, Reason.VERIFYING, Reason.ENDPOINT_UNREACHABLE})
"""Reasons of an adapter that asking again may change soon."""
MAX_MESSAGE: Final = 1024
"""Characters of an adapter's message; the schema says so."""
UNPROVEN: Final[Mapping[str, Any]] = {"verified": "Unknown", "reason": Reason.VERIFYING}
"""Of a version that clients do not get by its name yet, or not from all pods, whatever it was shown to do."""
UNASKED: Final[Mapping[str, Any]] = {
    **UNPROVEN,
    "message": "",
    "loaded_replicas": 0,
    "verified_replicas": 0,
    "replicas": [],
}
"""Of a version that no pod was asked for yet."""
SHOWN_DIGEST: Final = len("sha256:") + 12
"""Characters of a digest in a sentence."""


@dataclass(frozen=True)
class Replicas:
    """The server pods, as far as they say something about adapters."""

    desired: int
    pods: tuple[PodView, ...]
    """Those of the current configuration (base model; of a Rolling service its adapters, too)."""
    has_others: bool
    """Pods of another configuration, which are left from before, get traffic, or will again once they have restarted."""

    @property
    def ready(self) -> tuple[PodView, ...]:
        """Pods that can be asked."""
        return tuple(pod for pod in self.pods if pod.is_answering)


@dataclass(frozen=True)
class ProbeRequest:
    """A version of an adapter that a pod is to be asked for."""

    pod: PodView
    adapter: AdapterReference
    name: str
    """What the version is called now."""
    digest: str | None
    """What the pod has to have under that name; None if nobody said so yet."""

    @property
    def key(self) -> tuple[str, int, str]:
        """Identifies the answer: a restarted pod is another one."""
        return self.pod.name, self.pod.restarts, self.name


Answers = Mapping[tuple[str, int, str], ProbeResult]
"""What pods answered, by `ProbeRequest.key`."""


def find_status(service: InferenceService, adapter: AdapterReference) -> ServedAdapterStatus | None:
    """What was known before."""
    return next((status for status in service.status.adapters if status.name == adapter.name), None)


def judge_adapter(
    service: InferenceService, adapter: AdapterReference, replicas: Replicas, answers: Answers
) -> ServedAdapterStatus:
    """What is known now, with `answers` if pods were asked."""
    old = find_status(service, adapter)
    if old is not None and is_disproven(service, adapter, old):
        # Nobody can be asked again, because it is not listed; but what pods that are gone had is no verdict about others.
        forgotten = {} if _has_witness(old, replicas) else UNASKED
        return old.model_copy(update={"desired_replicas": replicas.desired, **forgotten})
    status = _measure(service, adapter, old, replicas, answers)
    if is_served(adapter, old):
        # Back to what is served still, while pods of the version that was to follow it get traffic.
        is_mixed = is_rolling(service) and replicas.has_others and not _was_proven(old, status)
        return status.model_copy(update=UNPROVEN) if is_mixed and status.verified == "True" else status
    if status.verified == "False":
        return _refused(status)
    if status.verified != "True" and status.reason != Reason.NO_FINGERPRINT:
        return status
    is_everywhere = bool(replicas.ready) and all(has_shown(status, pod) for pod in replicas.ready)
    if not is_everywhere or replicas.has_others:
        return status.model_copy(update=UNPROVEN)
    return _switched(service, adapter, status)


def _was_proven(old: ServedAdapterStatus | None, status: ServedAdapterStatus) -> bool:
    """Whether the very version of `status` was called verified already."""
    return old is not None and (old.probed_hash, old.verified) == (status.probed_hash, "True")


def has_shown(status: ServedAdapterStatus, pod: PodView) -> bool:
    """Whether this process was shown to answer with the version, or to have it if it carries no fingerprint."""
    return any(
        (verdict.pod, verdict.restarts) == (pod.name, pod.restarts)
        and (verdict.verified == "True" or (verdict.loaded and verdict.reason == Reason.NO_FINGERPRINT))
        for verdict in status.replicas
    )


def probe_requests(
    service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus, replicas: Replicas
) -> list[ProbeRequest]:
    """Pods that are still to be asked, `status` being what is known."""
    if is_disproven(service, adapter, status):
        return []
    name, digest = probed_name(service, adapter, status), adapter.digest
    if status.served is not None and is_served(adapter, status) and not is_rolling(service):
        # Listed with the digest that was proven; pods of a Rolling service know no more than the spec.
        digest = status.served.digest
    done = {(verdict.pod, verdict.restarts) for verdict in status.replicas if verdict.loaded}
    return [ProbeRequest(pod, adapter, name, digest) for pod in replicas.ready if (pod.name, pod.restarts) not in done]


def _has_witness(status: ServedAdapterStatus, replicas: Replicas) -> bool:
    """Whether a pod is left that disproved the version."""
    names = {pod.name for pod in replicas.pods}
    return any(verdict.verified == "False" and verdict.pod in names for verdict in status.replicas)


def _measure(
    service: InferenceService,
    adapter: AdapterReference,
    old: ServedAdapterStatus | None,
    replicas: Replicas,
    answers: Answers,
) -> ServedAdapterStatus:
    """What the pods were shown to do with the version, now and before."""
    name = probed_name(service, adapter, old)
    asked_for = probed_hash(service, adapter, name)
    known = old if old is not None and old.probed_hash == asked_for else None
    fresh = {pod.name: answers[key] for pod in replicas.ready if (key := (pod.name, pod.restarts, name)) in answers}
    verdicts = _verdicts(replicas.pods, known, fresh)
    names = {pod.name for pod in replicas.ready}
    counted = [verdict for verdict in verdicts if verdict.pod in names]
    truth, reason, message = _summary(replicas, known, counted, fresh)
    served = old.served if old is not None else None
    if served is not None and is_served(adapter, old):
        served = served.model_copy(update={"metrics": adapter.metrics})
    digest = adapter.digest or next((answer.digest for answer in fresh.values() if answer.digest), None)
    return ServedAdapterStatus(
        name=adapter.name,
        digest=digest or (known.digest if known is not None else None),
        served=served,
        desired_replicas=replicas.desired,
        loaded_replicas=sum(verdict.loaded for verdict in counted),
        verified_replicas=sum(verdict.verified == "True" for verdict in counted),
        verified=truth,
        reason=reason,
        message=message,
        probed_hash=asked_for,
        replicas=verdicts,
    )


def _verdicts(
    pods: tuple[PodView, ...], known: ServedAdapterStatus | None, fresh: Mapping[str, ProbeResult]
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


def _summary(
    replicas: Replicas,
    known: ServedAdapterStatus | None,
    verdicts: list[ReplicaVerdict],
    fresh: Mapping[str, ProbeResult],
) -> tuple[Truth, Reason | str, str]:
    """The verdict about all replicas: the worst one, or the common one once there is one about each."""

    def told(verdict: ReplicaVerdict) -> tuple[Truth, str, str]:
        answer = fresh.get(verdict.pod)
        if answer is None or answer.reason != verdict.reason:
            # The known message may be about another pod, and say the opposite; but only what was shown is VERIFYING on.
            is_known = known is not None and known.reason in (verdict.reason, Reason.VERIFYING)
            return verdict.verified, verdict.reason, known.message if known is not None and is_known else ""
        where = f"Pod {verdict.pod}: " if verdict.verified == "False" and replicas.desired > 1 else ""
        return verdict.verified, verdict.reason, f"{where}{answer.message}"[:MAX_MESSAGE]

    failed = next((verdict for verdict in verdicts if verdict.verified == "False"), None)
    if failed is not None:
        return told(failed)
    if known is not None and known.verified == "True":
        # What is proven stays so while replicas come and go; those that were not asked yet are not counted.
        return "True", known.reason, known.message
    if verdicts and len(verdicts) == len(replicas.ready):
        return told(verdicts[0])
    if not replicas.ready:
        return "Unknown", Reason.ROLLING_OUT, "The fingerprint is replayed when a server is ready."
    waiting = [answer for answer in fresh.values() if not answer.is_final]
    if waiting:
        worst = next((a for a in waiting if a.reason == Reason.ENDPOINT_UNREACHABLE), waiting[0])
        return "Unknown", worst.reason, worst.message[:MAX_MESSAGE]
    if known is not None and known.reason in PENDING - {Reason.ROLLING_OUT}:
        return "Unknown", known.reason, known.message
    return "Unknown", Reason.VERIFYING, ""


def _refused(status: ServedAdapterStatus) -> ServedAdapterStatus:
    """The verdict, with what clients get instead."""
    if status.served is None:
        return status
    kept = f" Clients still get version {(status.served.digest or status.served.source)[:SHOWN_DIGEST]}."
    message = status.message.removesuffix(kept)[: MAX_MESSAGE - len(kept)] + kept
    return status.model_copy(update={"message": message})


def _switched(service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus) -> ServedAdapterStatus:
    """The name means the new version from now on; if it had another one so far, each replica is asked for it next."""
    served = ServedVersion(source=adapter.source, digest=status.digest, metrics=adapter.metrics)
    if is_rolling(service):
        return status.model_copy(update={"served": served})
    asked_for = probed_hash(service, adapter, adapter.name)
    return status.model_copy(update={"served": served, "probed_hash": asked_for, **UNASKED})
