"""What goes over the wire. Requests are the spec of a FinetuneJob plus its name; answers use the names of its status.

One vocabulary through all doors: a field that exists in the custom resource has the same name here.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.v1alpha1 import AdapterStatus, FailureStatus, FinetuneJobSpec, MetricStatus, ProgressStatus
from finetune_api.v1alpha1.common import DNS_LABEL_PATTERN

MAX_TASK_NAME: Final = 50
"""The CRD's own limit: children add suffixes to the name."""
TASK_ID_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""RFC 1123 subdomain: kubectl may have made a job with dots in its name."""

Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL_PATTERN)]


class FinetuneRequest(FinetuneJobSpec):
    """The body of `POST /llm/finetune`: the spec of a FinetuneJob, and where it goes."""

    name: Annotated[
        str | None,
        Field(
            description="name of the job, which is also its task_id; generated if absent.",
            min_length=1,
            max_length=MAX_TASK_NAME,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
    namespace: Annotated[Namespace | None, Field(description="namespace of the job; or use ?namespace=.")] = None


class State(StrEnum):
    """The phase in few words, for programs that only ask "is it over?"."""

    PENDING = "pending"
    """Waiting for validation, quota or a node."""
    RUNNING = "running"
    """Training, publishing, or bringing up the endpoint."""
    SUSPENDED = "suspended"
    """Paused by spec.suspend."""
    CANCELLING = "cancelling"
    """Cancellation was asked for and is not done yet."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ResponseModel(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; absent rather than null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Endpoint(ResponseModel):
    """Where the tuned model answers."""

    url: Annotated[str | None, Field(description="url of the OpenAI-compatible API inside the cluster.")] = None
    model: Annotated[str, Field(description="model to ask for at that API: the adapter's name.")]
    ready: Annotated[bool, Field(description="ready says whether the endpoint answers.")]
    verified: Annotated[bool, Field(description="verified says whether it answers with the tuned weights.")]


class Task(ResponseModel):
    """One fine-tuning, as its object says."""

    task_id: Annotated[str, Field(alias="task_id", description="task_id is the name of the FinetuneJob.")]
    namespace: Annotated[str, Field(description="namespace of the FinetuneJob.")]
    state: Annotated[State, Field(description="state in one word, for programs.")]
    phase: Annotated[str, Field(description="phase of the FinetuneJob, for people.")]
    reason: Annotated[str | None, Field(description="reason of the phase, from the glossary.")] = None
    message: Annotated[str | None, Field(description="message of the phase.")] = None
    attempt: Annotated[int, Field(description="attempt is the number of the latest attempt.")] = 0
    progress: Annotated[ProgressStatus | None, Field(description="progress of the running attempt.")] = None
    metrics: Annotated[list[MetricStatus], Field(description="metrics of the finished training.")] = Field(
        default_factory=list
    )
    adapter: Annotated[AdapterStatus | None, Field(description="adapter that was committed.")] = None
    endpoint: Annotated[Endpoint | None, Field(description="endpoint, if the job has `serve`.")] = None
    last_failure: Annotated[FailureStatus | None, Field(description="lastFailure of an attempt.")] = None
    creation_time: Annotated[str | None, Field(description="creationTime of the object.")] = None
    start_time: Annotated[str | None, Field(description="startTime of the first attempt.")] = None
    completion_time: Annotated[str | None, Field(description="completionTime of the job.")] = None


class TaskPage(ResponseModel):
    """One page of tasks."""

    items: Annotated[list[Task], Field(description="items of this page, sorted by name.")]
    next: Annotated[
        str | None,
        Field(alias="continue", description="continue is the cursor of the next page; absent on the last one."),
    ] = None


class Problem(ResponseModel):
    """One thing that is wrong with a request."""

    field: Annotated[str, Field(description="field that is wrong, for example method.lora.rank.")]
    message: Annotated[str, Field(description="message that says what is expected.")]
    found: Annotated[str | None, Field(description="found is the refused value, shortened.")] = None


class ErrorDetail(ResponseModel):
    """Why a request was refused."""

    code: Annotated[str, Field(description="code is one CamelCase word, for programs.")]
    message: Annotated[str, Field(description="message for people.")]
    object: Annotated[str | None, Field(description="object that the error is about.")] = None
    field: Annotated[str | None, Field(description="field of the first problem.")] = None
    problems: Annotated[list[Problem], Field(description="problems of the request, all at once.")] = Field(
        default_factory=list
    )


class ErrorBody(ResponseModel):
    """Every answer that is not 2xx."""

    error: ErrorDetail


class Health(ResponseModel):
    """ResponseModel of the probes."""

    status: Annotated[str, Field(description="status: ok.")] = "ok"
