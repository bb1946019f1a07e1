"""What is known about one adapter on every replica, and which version its name means from now on. Pure.

A version is proven as a candidate on every replica before clients get it by name, and then once more under that name.
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
from finetune_operator.probe import ProbeResult
from finetune_operator.reconcile.conditions import Truth
from finetune_operator.reconcile.views import PodView
from finetune_operator.resources.adapter_list import is_disproven, probed_hash, probed_name

PENDING: Final = frozenset({Reason.ROLLING_OUT, Reason.LOADING, Reason.VERIFYING, Reason.ENDPOINT_UNREACHABLE})
"""Reasons of an adapter that asking again may change soon."""
MAX_MESSAGE: Final = 1024
"""Characters of an adapter's message; the schema says so."""
UNPROVEN: Final[Mapping[str, Any]] = {"verified": "Unknown", "reason": Reason.VERIFYING, "message": ""}
"""Of a version that clients do not get by its name yet, whatever its candidate was shown to do."""
SHOWN_DIGEST: Final = len("sha256:") + 12
"""Characters of a digest in a sentence."""


@dataclass(frozen=True)
class Replicas:
    """The server pods, as far as they say something about adapters."""

    desired: int
    ready: tuple[PodView, ...]
    """Ready pods of the current base model."""
    has_others: bool
    """Ready pods of another base model are left from before."""


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
    if is_disproven(service, adapter, old) and old is not None:
        return old.model_copy(update={"desired_replicas": replicas.desired})
    name = probed_name(adapter, old)
    asked_for = probed_hash(service, adapter, name)
    known = old if old is not None and old.probed_hash == asked_for else None
    fresh = {pod.name: answers[key] for pod in replicas.ready if (key := (pod.name, pod.restarts, name)) in answers}
    verdicts = _verdicts(replicas.ready, known, fresh)
    truth, reason, message = _summary(replicas, known, verdicts, fresh)
    served = old.served if old is not None else None
    if served is not None and name == adapter.name:
        served = served.model_copy(update={"metrics": adapter.metrics})
    digest = adapter.digest or next((answer.digest for answer in fresh.values() if answer.digest), None)
    status = ServedAdapterStatus(
        name=adapter.name,
        digest=digest or (known.digest if known is not None else None),
        served=served,
        desired_replicas=replicas.desired,
        loaded_replicas=sum(verdict.loaded for verdict in verdicts),
        verified_replicas=sum(verdict.verified == "True" for verdict in verdicts),
        verified=truth,
        reason=reason,
        message=message,
        probed_hash=asked_for,
        replicas=verdicts,
    )
    if name == adapter.name:
        return status
    if truth == "False" and served is not None:
        kept = f" Clients still get version {(served.digest or served.source)[:SHOWN_DIGEST]}."
        return status.model_copy(update={"message": message.removesuffix(kept)[: MAX_MESSAGE - len(kept)] + kept})
    if truth != "True" and reason != Reason.NO_FINGERPRINT:
        return status
    is_asked = bool(replicas.ready) and len(verdicts) == len(replicas.ready) and not replicas.has_others
    return _switched(service, adapter, status) if is_asked else status.model_copy(update=UNPROVEN)


def probe_requests(
    service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus, replicas: Replicas
) -> list[ProbeRequest]:
    """Pods that are still to be asked, `status` being what is known."""
    if is_disproven(service, adapter, status):
        return []
    name = probed_name(adapter, status)
    done = {(verdict.pod, verdict.restarts) for verdict in status.replicas if verdict.loaded}
    digest = status.served.digest if name == adapter.name and status.served else adapter.digest
    return [ProbeRequest(pod, adapter, name, digest) for pod in replicas.ready if (pod.name, pod.restarts) not in done]


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
            # The known message may be about another pod, and say the opposite.
            is_known = known is not None and known.reason == verdict.reason
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


def _switched(service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus) -> ServedAdapterStatus:
    """The name means the new version from now on; whether it does so on each replica is asked next."""
    update: dict[str, Any] = {
        "served": ServedVersion(source=adapter.source, digest=status.digest, metrics=adapter.metrics),
        "probed_hash": probed_hash(service, adapter, adapter.name),
        "loaded_replicas": 0,
        "verified_replicas": 0,
        "replicas": [],
        **UNPROVEN,
    }
    return status.model_copy(update=update)
