"""The status of a FinetuneJob with an endpoint: `serving`, ServingReady and AdapterVerified. Pure."""

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import FinetuneJob, ServingStatus
from finetune_operator.kubernetes_types import Truth
from finetune_operator.reconcile.conditions import known_reason
from finetune_operator.reconcile.job.changes import ConditionChange, StatusChanges
from finetune_operator.reconcile.job.endpoint import Endpoint
from finetune_operator.reconcile.job.findings import Finished, Serving


def describe_finished(job: FinetuneJob, finding: Finished) -> StatusChanges:
    """Mirror the endpoint of a finished job, or say that it serves the adapter no more."""
    if finding.endpoint is not None:
        return _mirror(finding.endpoint)
    serving = job.status.serving
    if not finding.is_lost or serving is None:
        return StatusChanges()
    lost = serving.model_copy(update={"ready": False, "verified": False, "url": None, "state": None})
    reason, what = Reason.ENDPOINT_UNREACHABLE, "was deleted."
    if finding.replaced_by is not None:
        reason, what = Reason.ADAPTER_SWITCHED, "serves another version of the adapter by now, or none."
    message = f"InferenceService {serving.name} {what}"
    return StatusChanges((ConditionChange(ConditionType.SERVING_READY, "False", reason, message),), {"serving": lost})


def describe_serving(finding: Serving) -> StatusChanges:
    """Mirror the endpoint, or say that the regression gate keeps the adapter out."""
    if finding.regression is None:
        return _mirror(finding.endpoint)
    reason = Reason.EVAL_REGRESSION
    return StatusChanges((ConditionChange(ConditionType.SERVING_READY, "False", reason, finding.regression),))


def _mirror(endpoint: Endpoint) -> StatusChanges:
    verdict = endpoint.verdict
    conditions = [_serving_ready(endpoint)]
    if verdict is not None:
        reason = known_reason(verdict.reason)
        conditions.append(ConditionChange(ConditionType.ADAPTER_VERIFIED, verdict.verified, reason, verdict.message))
    serving = ServingStatus(
        name=endpoint.service.metadata.name,
        url=endpoint.service.status.url,
        ready=endpoint.is_ready,
        verified=verdict is not None and verdict.verified == "True",
        state=_state(endpoint),
        started_time=endpoint.started_time,
    )
    return StatusChanges(tuple(conditions), {"serving": serving})


def _serving_ready(endpoint: Endpoint) -> ConditionChange:
    ready = endpoint.ready
    if ready is None:
        message = "The endpoint is being deployed."
        return ConditionChange(ConditionType.SERVING_READY, "False", Reason.ROLLING_OUT, message)
    status: Truth = "True" if endpoint.is_ready else "False"
    return ConditionChange(ConditionType.SERVING_READY, status, known_reason(ready.reason), ready.message)


def _state(endpoint: Endpoint) -> str:
    verdict = endpoint.verdict
    if verdict is not None and verdict.verified == "False":
        return "Failed"
    if not endpoint.is_ready:
        return "Deploying"
    return "Verified" if verdict is not None and verdict.verified == "True" else "Ready"
