"""Hypothesis strategies for request bodies: near misses of valid ones find more than noise does."""

import copy
from typing import Any

from hypothesis import strategies as st

SEED: dict[str, Any] = {
    "name": "a",
    "model": {"source": "pvc://models/m", "revision": "main", "secretRef": {"name": "s", "key": "token"}},
    "dataset": {"inline": '{"text": "a"}', "format": "text", "columns": {"text": "a"}},
    "evaluation": {"fraction": 0.1},
    "method": {"lora": {"rank": 8, "alpha": 16, "dropout": 0.1, "targetModules": ["q_proj"]}},
    "hyperparameters": {"epochs": 1.5, "batchSize": 8, "learningRate": 0.1, "schedule": "cosine", "seed": 1},
    "checkpoint": {"everySteps": 10, "keep": 2},
    "resources": {"cpu": "500m", "memory": "1Gi", "gpu": 0},
    "policy": {"maxAttempts": 2, "activeDeadlineSeconds": 60},
    "output": {"claim": "c", "adapterName": "n"},
    "serve": {"name": "n", "replicas": 1, "timeoutSeconds": 60},
    "queueName": "q",
    "suspend": False,
}
"""A valid body with most fields."""

LEAKS = r"Input should|constrained-|function-\w+|list\[|dict\[|type=\w+_|pydantic|[a-z]Format\b|TextPart|StructuredOutputs|JsonSchema\b"
"""What pydantic's own messages and locations have, and no message for a person."""
_NUMBERS = st.sampled_from([-1, 0, 1, 0.5, 256, 257, 4097, 2**31, 2**63, 2**64, 10**40, 1e308, 5e-324, -0.0])
_TEXTS = st.sampled_from(["", " ", "a", "A", "..", "/", "a/b", "\u0000", "\ud800", "🦙", "a" * 300, "true", "8", "NaN"])
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS, st.text(max_size=20), st.floats())
ANY_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(_TEXTS, st.text()), inner, max_size=3)
    ),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [path] + [place for key, inner in items for place in _places(inner, (*path, key))]


@st.composite
def near_misses(
    draw: st.DrawFn, replacement: st.SearchStrategy[Any] = ANY_JSON, seed: dict[str, Any] = SEED
) -> dict[str, Any]:
    """A valid body with up to three values replaced, removed or added."""
    body = copy.deepcopy(seed)
    for _ in range(draw(st.integers(1, 3))):
        parent: Any = body
        *way, last = draw(st.sampled_from(_places(seed)[1:]))
        for key in way:
            if isinstance(parent, list):
                parent = parent[key] if key in range(len(parent)) else None
            else:
                parent = parent[key] if isinstance(parent, dict) and key in parent else None
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace" if isinstance(parent, dict) or (isinstance(parent, list) and last in range(len(parent))):
                parent[last] = draw(replacement)
            case "remove" if isinstance(parent, dict):
                parent.pop(last, None)
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=10))] = draw(replacement)
    return body
