"""The Celery app, and all of its policy in one place.

Celery carries a message that says "start" and figures that say how far training is. It decides nothing: attempts belong to
the operator, the outcome to the termination message, and a broker that is gone must not be felt.
"""

from typing import Any, Final

from celery import Celery

RESULT_EXPIRES: Final = 24 * 3600
"""Seconds for which progress stays in Redis; nobody reads it once the pod has ended."""
VISIBILITY_TIMEOUT: Final = 7 * 24 * 3600
"""Seconds until Redis would hand out an unacknowledged message again: longer than any training."""
NETWORK_TIMEOUT: Final = 2.0
"""Seconds for any single exchange with Redis."""

POLICY: Final[dict[str, Any]] = {
    # The message is gone as soon as the task starts: a redelivered one would be a second trainer.
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    # One message, one pod.
    "worker_prefetch_multiplier": 1,
    "worker_concurrency": 1,
    # In this very process and thread: a child would need the model twice, and CUDA does not survive a fork.
    "worker_pool": "solo",
    # Data only; a pickle from Redis would be code.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_expires": RESULT_EXPIRES,
    # Never insist on a connection: the caller goes on without one.
    "broker_connection_retry": False,
    "broker_connection_retry_on_startup": False,
    "broker_connection_timeout": NETWORK_TIMEOUT,
    "task_publish_retry": False,
    "result_backend_always_retry": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_transport_options": {
        "visibility_timeout": VISIBILITY_TIMEOUT,
        "socket_connect_timeout": NETWORK_TIMEOUT,
        "socket_timeout": NETWORK_TIMEOUT,
        "max_retries": 0,
    },
    "redis_socket_connect_timeout": NETWORK_TIMEOUT,
    "redis_socket_timeout": NETWORK_TIMEOUT,
    "redis_retry_on_timeout": False,
    "result_backend_transport_options": {"retry_policy": {"max_retries": 1, "interval_start": 0, "interval_max": 0.2}},
    # Nothing else speaks on this connection.
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}


def create_app(broker_url: str) -> Celery:
    """The app with Redis as broker and result backend."""
    app = Celery("finetune_trainer", broker=broker_url, backend=broker_url, set_as_current=False)
    app.conf.update(POLICY)
    app.conf.include = ["finetune_trainer.tasks.finetuning_task"]
    return app
