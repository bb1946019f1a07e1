"""`/llm/finetune`: start, read, list and cancel fine-tuning tasks. A task is a FinetuneJob; its id is the object's name."""

import secrets
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Request, Response

from finetune_gateway import examples, translate
from finetune_gateway.cluster import Cluster
from finetune_gateway.dependencies import CallerToken, NamespaceQuery, TheCluster, TheSettings, limited_body
from finetune_gateway.errors import ConflictError, GatewayError
from finetune_gateway.openapi import refusals, request_body
from finetune_gateway.schemas import MAX_TASK_NAME, TASK_ID_PATTERN, FinetuneRequest, State, Task, TaskPage

PREFIX = "/llm/finetune"

router = APIRouter(prefix=PREFIX, tags=["fine-tuning"])

TaskId = Annotated[
    str,
    Path(
        description="task_id is the name of the FinetuneJob.",
        min_length=1,
        max_length=MAX_TASK_NAME,
        pattern=TASK_ID_PATTERN,
    ),
]


@router.post(
    "",
    status_code=202,
    response_model=Task,
    response_model_exclude_none=True,
    summary="Start a fine-tuning task",
    responses={
        202: {
            "description": "The FinetuneJob was created. Follow it at `Location`.",
            "headers": {"Location": {"description": "Path of the task.", "schema": {"type": "string"}}},
            "content": {"application/json": {"example": examples.STARTED}},
        },
        **refusals(401, 403, 404, 409, 413, 422, 429, 503),
    },
    openapi_extra=request_body(FinetuneRequest, examples.REQUESTS),
)
async def start(
    request: Request,
    response: Response,
    token: CallerToken,
    cluster: TheCluster,
    settings: TheSettings,
    namespace: NamespaceQuery = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Idempotency-Key makes retries safe: the same key and body return the same task; another body is a 409. "
            "Keys belong to a namespace.",
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
        ),
    ] = None,
) -> Task:
    """Create a FinetuneJob from its spec.

    With an Idempotency-Key, a repeated request returns the existing task.
    """
    wanted = translate.parse_request(await limited_body(request))
    where = translate.chosen_namespace(namespace, wanted.namespace, settings.default_namespace)
    if idempotency_key is None:
        name = wanted.name or translate.generated_name(wanted, random_suffix())
        raw = await cluster.create(token, translate.build_manifest(wanted, where, name, digest=None))
    else:
        name = wanted.name or translate.idempotent_name(idempotency_key)
        raw = await _create_once(cluster, token, wanted, where, name)
    response.headers["Location"] = f"{PREFIX}/{quote(name)}?namespace={quote(where)}"
    return translate.task_from(raw)


@router.get(
    "",
    response_model=TaskPage,
    response_model_exclude_none=True,
    summary="List fine-tuning tasks",
    responses={
        200: {"content": {"application/json": {"example": examples.PAGE}}},
        **refusals(401, 403, 410, 422, 429, 503),
    },
)
async def list_tasks(
    token: CallerToken,
    cluster: TheCluster,
    settings: TheSettings,
    namespace: NamespaceQuery = None,
    limit: Annotated[int, Query(description="limit is the maximum number of items per page.", ge=1, le=500)] = 50,
    cursor: Annotated[
        str | None,
        Query(
            alias="continue",
            description="continue is the cursor from the previous page. It is opaque and expires after a few minutes.",
        ),
    ] = None,
) -> TaskPage:
    """List all tasks of a namespace, including those created with kubectl."""
    where = translate.chosen_namespace(namespace, None, settings.default_namespace)
    return translate.page_from(await cluster.list_page(token, where, limit, cursor))


@router.get(
    "/{task_id}",
    response_model=Task,
    response_model_exclude_none=True,
    summary="Read a fine-tuning task",
    responses={
        200: {"content": {"application/json": {"example": examples.RUNNING}}},
        **refusals(401, 403, 404, 422, 429, 503),
    },
)
async def read(
    task_id: TaskId,
    token: CallerToken,
    cluster: TheCluster,
    settings: TheSettings,
    namespace: NamespaceQuery = None,
) -> Task:
    """Return state, progress, metrics, adapter and endpoint from the object's status."""
    where = translate.chosen_namespace(namespace, None, settings.default_namespace)
    return translate.task_from(await cluster.read(token, where, task_id))


@router.delete(
    "/{task_id}",
    status_code=202,
    response_model=Task,
    response_model_exclude_none=True,
    summary="Cancel a fine-tuning task",
    responses={
        202: {"content": {"application/json": {"example": examples.CANCELLING}}},
        **refusals(401, 403, 404, 409, 422, 429, 503),
    },
)
async def cancel(
    task_id: TaskId,
    token: CallerToken,
    cluster: TheCluster,
    settings: TheSettings,
    namespace: NamespaceQuery = None,
) -> Task:
    """Set spec.cancel. The object remains as a record; delete it with kubectl.

    Cancelling twice is allowed. A task that has succeeded or failed cannot be cancelled: 409.
    """
    where = translate.chosen_namespace(namespace, None, settings.default_namespace)
    task = _unless_over(translate.task_from(await cluster.read(token, where, task_id)))
    if task.state in (State.CANCELLING, State.CANCELLED):
        return task
    # The task may have ended since it was read; the operator then ignores spec.cancel, and the caller gets a 409.
    return _unless_over(translate.task_from(await cluster.cancel(token, where, task_id)))


def random_suffix() -> str:
    """Return the random suffix of a generated name."""
    return "".join(secrets.choice(translate.SUFFIX_ALPHABET) for _ in range(translate.SUFFIX_LENGTH))


async def _create_once(
    cluster: Cluster, token: str, wanted: FinetuneRequest, namespace: str, name: str
) -> translate.Raw:
    """Create the object of an Idempotency-Key, or return the one that an earlier request created."""
    digest = translate.request_digest(wanted)
    try:
        return await cluster.create(token, translate.build_manifest(wanted, namespace, name, digest))
    except GatewayError as error:
        if error.detail.code != "AlreadyExists":
            raise
    existing = await cluster.read(token, namespace, name)
    if not translate.is_repeat(existing, digest):
        message = f"FinetuneJob {namespace}/{name} was created by another request. Use a new Idempotency-Key or name."
        raise ConflictError("IdempotencyKeyReused", message, f"FinetuneJob {namespace}/{name}")
    return existing


def _unless_over(task: Task) -> Task:
    if task.state in (State.SUCCEEDED, State.FAILED):
        what = f"FinetuneJob {task.namespace}/{task.task_id}"
        raise ConflictError("AlreadyOver", f"{what} has {task.state} and cannot be cancelled.", what)
    return task
