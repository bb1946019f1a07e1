"""Celery app of the trainer, with all of its policy.

Celery carries the message that starts an attempt, and its progress. It decides nothing: attempts belong to the operator, the
outcome to the termination message, and a lost broker must not affect training.
"""

from typing import Any, Final

from celery import Celery

RESULT_EXPIRES: Final = 24 * 3600
"""Seconds that progress stays in Redis; nobody reads it after the pod has ended."""
VISIBILITY_TIMEOUT: Final = 7 * 24 * 3600
"""Seconds until Redis redelivers an unacknowledged message: longer than any training."""
NETWORK_TIMEOUT: Final = 2.0
"""Seconds that any single request to Redis may take."""

POLICY: Final[dict[str, Any]] = {
    # Acknowledge before the task starts: a redelivered message would start a second trainer.
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    # One message, one pod.
    "worker_prefetch_multiplier": 1,
    "worker_concurrency": 1,
    # Run in this process and thread: a child would load the model a second time, and CUDA does not survive a fork.
    "worker_pool": "solo",
    # JSON only: a pickle from Redis could run code.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_expires": RESULT_EXPIRES,
    # Never retry a connection: the caller continues without one.
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
    # The worker sends and receives nothing else.
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}


def create_app(broker_url: str) -> Celery:
    """Create the app with Redis as broker and result backend."""
    app = Celery("finetune_trainer", broker=broker_url, backend=broker_url, set_as_current=False)
    app.conf.update(POLICY)
    app.conf.include = ["finetune_trainer.tasks.finetuning_task"]
    return app
