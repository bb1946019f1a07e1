"""Examples for the OpenAPI document. A test sends the requests and parses the answers, so that they stay valid."""

from typing import Any, Final

Example = dict[str, Any]

_INLINE: Final = (
    '{"prompt": "My parcel is late.", "completion": "category: delivery"}\n'
    '{"prompt": "I was charged twice.", "completion": "category: billing"}\n'
)

REQUESTS: Final[dict[str, Example]] = {
    "minimal": {
        "summary": "A model on a claim, rows in the request",
        "value": {
            "name": "support-tickets",
            "model": {"source": "pvc://models/smollm2-135m-instruct"},
            "dataset": {"inline": _INLINE},
        },
    },
    "served": {
        "summary": "A gated model from the hub, rows in a ConfigMap, served at an endpoint",
        "value": {
            "namespace": "support",
            "model": {"source": "hf://meta-llama/Llama-3.2-1B-Instruct", "secretRef": {"name": "hub-token"}},
            "dataset": {"source": "configmap://tickets/train.jsonl", "format": "messages"},
            "method": {"lora": {"rank": 16, "alpha": 32}},
            "hyperparameters": {"epochs": 2, "learningRate": 0.0001},
            "resources": {"cpu": "2", "memory": "16Gi", "gpu": 1},
            "serve": {"resources": {"memory": "8Gi", "gpu": 1}},
        },
    },
}

STARTED: Final[Example] = {
    "task_id": "support-tickets",
    "namespace": "default",
    "state": "pending",
    "phase": "Pending",
    "attempt": 0,
    "metrics": [],
    "creationTime": "2026-11-23T09:00:00Z",
}

RUNNING: Final[Example] = {
    **STARTED,
    "state": "running",
    "phase": "Running",
    "reason": "Training",
    "message": "The training pod is running.",
    "attempt": 1,
    "progress": {
        "step": 40,
        "totalSteps": 120,
        "epoch": 1.0,
        "percent": 33,
        "loss": "0.8123",
        "etaSeconds": 96,
        "eta": "1m36s",
        "tokensPerSecond": 512,
        "lastUpdateTime": "2026-11-23T09:01:10Z",
    },
    "startTime": "2026-11-23T09:00:20Z",
}

CANCELLING: Final[Example] = {**RUNNING, "state": "cancelling"}

PAGE: Final[Example] = {"items": [RUNNING], "continue": "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MTIzfQ"}

ERROR_MESSAGES: Final[dict[int, Example]] = {
    401: {
        "code": "Unauthenticated",
        "message": "There is no token. Send your Kubernetes token as `Authorization: Bearer TOKEN`.",
    },
    403: {
        "code": "Forbidden",
        "message": 'You may not create FinetuneJob ml/support-tickets: User "ann" cannot create …',
    },
    404: {"code": "NotFound", "message": "FinetuneJob default/support-tickets does not exist."},
    409: {"code": "AlreadyExists", "message": "FinetuneJob default/support-tickets already exists. Use another name."},
    410: {"code": "CursorExpired", "message": "The cursor has expired. Start again without `continue`."},
    413: {"code": "TooLarge", "message": "The body has more than 262144 bytes. Put the rows into a ConfigMap …"},
    422: {
        "code": "Invalid",
        "message": "method.lora.rank: expected 1 or more, found 0",
        "field": "method.lora.rank",
        "problems": [
            {
                "field": "method.lora.rank",
                "message": "expected 1 or more",
                "found": "0",
            }
        ],
    },
    429: {"code": "TooManyRequests", "message": "The API server is busy. Try again after Retry-After seconds."},
    503: {"code": "Unavailable", "message": "The API server cannot be reached (ConnectError)."},
}
