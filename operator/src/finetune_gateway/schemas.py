"""Requests and responses. A request is the spec of a FinetuneJob plus its name; responses use the names of its status.

A field of the custom resource has the same name here.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.v1alpha1 import AdapterStatus, FailureStatus, FinetuneJobSpec, MetricStatus, ProgressStatus
from finetune_api.v1alpha1.common import DNS_LABEL_PATTERN

MAX_TASK_NAME: Final = 50
"""Longest name in characters, as in the CRD, because children add suffixes to it."""
TASK_ID_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""RFC 1123 subdomain, because a job created with kubectl may have dots in its name."""

Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL_PATTERN)]


class FinetuneRequest(FinetuneJobSpec):
    """Body of `POST /llm/finetune`: the spec of a FinetuneJob, its name and its namespace."""

    name: Annotated[
        str | None,
        Field(
            description="name is the name of the job, which is also its task_id. Default: a generated name.",
            min_length=1,
            max_length=MAX_TASK_NAME,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
    namespace: Annotated[
        Namespace | None,
        Field(description="namespace is the namespace of the job. It can also be given as ?namespace=."),
    ] = None


class State(StrEnum):
    """Summary of the phase for programs, mainly whether the task has ended."""

    PENDING = "pending"
    """Waiting for validation, quota or a node."""
    RUNNING = "running"
    """Training, publishing, or deploying the endpoint."""
    SUSPENDED = "suspended"
    """Paused by spec.suspend."""
    CANCELLING = "cancelling"
    """Cancellation was requested and is not complete yet."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ResponseModel(BaseModel):
    """Base of all responses."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; unset fields are absent rather than null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Endpoint(ResponseModel):
    """Endpoint that serves the tuned model."""

    url: Annotated[str | None, Field(description="url is the URL of the OpenAI-compatible API inside the cluster.")] = (
        None
    )
    model: Annotated[str, Field(description="model is the name to use as `model` there: the adapter's name.")]
    ready: Annotated[bool, Field(description="ready says whether the endpoint answers.")]
    verified: Annotated[
        bool, Field(description="verified says whether the endpoint is proven to answer with the tuned weights.")
    ]


class Task(ResponseModel):
    """A fine-tuning task, as its object describes it."""

    task_id: Annotated[str, Field(alias="task_id", description="task_id is the name of the FinetuneJob.")]
    namespace: Annotated[str, Field(description="namespace is the namespace of the FinetuneJob.")]
    state: Annotated[State, Field(description="state summarizes the phase for programs.")]
    phase: Annotated[str, Field(description="phase is the phase of the FinetuneJob.")]
    reason: Annotated[
        str | None, Field(description="reason is one CamelCase word for why the task is in this phase.")
    ] = None
    message: Annotated[str | None, Field(description="message is a sentence about the phase.")] = None
    attempt: Annotated[int, Field(description="attempt is the number of the latest attempt.")] = 0
    progress: Annotated[ProgressStatus | None, Field(description="progress of the running attempt.")] = None
    metrics: Annotated[list[MetricStatus], Field(description="metrics of the finished training run.")] = Field(
        default_factory=list
    )
    adapter: Annotated[AdapterStatus | None, Field(description="adapter is the committed adapter.")] = None
    endpoint: Annotated[Endpoint | None, Field(description="endpoint is the endpoint of a job with `serve`.")] = None
    last_failure: Annotated[
        FailureStatus | None, Field(description="lastFailure describes the last failed attempt.")
    ] = None
    creation_time: Annotated[str | None, Field(description="creationTime is when the object was created.")] = None
    start_time: Annotated[str | None, Field(description="startTime is when training started in the first attempt.")] = (
        None
    )
    completion_time: Annotated[
        str | None, Field(description="completionTime is when the job succeeded, failed or was cancelled.")
    ] = None


class TaskPage(ResponseModel):
    """One page of tasks."""

    items: Annotated[list[Task], Field(description="items lists the tasks of this page, sorted by name.")]
    next: Annotated[
        str | None,
        Field(alias="continue", description="continue is the cursor of the next page; absent on the last one."),
    ] = None


class Problem(ResponseModel):
    """One problem of a request."""

    field: Annotated[str, Field(description="field is the field at fault, for example method.lora.rank.")]
    message: Annotated[str, Field(description="message says what is wrong or expected.")]
    found: Annotated[str | None, Field(description="found is the refused value as JSON, shortened.")] = None


class ErrorDetail(ResponseModel):
    """Details of an error."""

    code: Annotated[str, Field(description="code is one CamelCase word for programs.")]
    message: Annotated[str, Field(description="message is a sentence for people.")]
    object: Annotated[str | None, Field(description="object is the object that the error is about.")] = None
    field: Annotated[str | None, Field(description="field is the field of the first problem.")] = None
    problems: Annotated[
        list[Problem], Field(description="problems lists everything that is wrong with the request.")
    ] = Field(default_factory=list)


class ErrorBody(ResponseModel):
    """Body of every response that is not 2xx."""

    error: ErrorDetail


class Health(ResponseModel):
    """Response of the probes."""

    status: Annotated[str, Field(description="status is ok.")] = "ok"
