"""Drift: differences between a live object and the manifest that was applied. Defaults added by the API server do not count."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from finetune_operator.resources import Manifest
from finetune_operator.resources.annotations import ANNOTATION_DESIRED_HASH

_QUANTITY = re.compile(r"^([0-9]+(?:\.[0-9]+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")
_FACTORS = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate(("k", "M", "G", "T"), start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate(("K", "M", "G", "T"), start=1)},
}


IDENTITY = frozenset({"apiVersion", "kind", "metadata"})
"""Keys of a manifest that identify the object; the others (`spec`, or `data` of a ConfigMap) are its content."""
ATOMIC = frozenset({"selector", "nodeSelector"})
"""Maps whose meaning changes with an added key, so they are compared as a whole."""
LIST_KEYS = ("mountPath", "containerPort", "port", "name")
"""Keys by which server-side apply merges lists. Items that others add cannot be removed by it, so they are not drift."""


def has_drifted(desired: Manifest, live: Manifest) -> bool:
    """Return whether the live object was made from another manifest, or a field that the operator applied was changed."""
    if is_outdated(desired, live):
        return True
    content = {key: value for key, value in desired.items() if key not in IDENTITY}
    return not is_subset(live, content) or not is_subset(
        live["metadata"].get("labels") or {}, desired["metadata"]["labels"]
    )


def is_outdated(desired: Manifest, live: Manifest) -> bool:
    """Return whether the live object was made from another manifest."""
    annotations = live["metadata"].get("annotations") or {}
    return bool(annotations.get(ANNOTATION_DESIRED_HASH) != desired["metadata"]["annotations"][ANNOTATION_DESIRED_HASH])


def is_subset(live: Any, desired: Any) -> bool:
    """Return whether everything in `desired` is in `live`. Dicts and keyed lists may have more items, other lists may not."""
    if isinstance(desired, dict):
        return isinstance(live, dict) and all(_has(live, key, value) for key, value in desired.items())
    if isinstance(desired, list | tuple):
        if not isinstance(live, list):
            return False
        if _is_keyed(desired):
            return all(any(is_subset(item, wanted) for item in live) for wanted in desired)
        return len(live) == len(desired) and all(is_subset(a, b) for a, b in zip(live, desired, strict=True))
    return live == desired or _same_quantity(live, desired)


def _is_keyed(items: Sequence[Any]) -> bool:
    return any(all(isinstance(item, dict) and key in item for item in items) for key in LIST_KEYS) and bool(items)


def _has(live: dict[str, Any], key: str, value: Any) -> bool:
    if key in ATOMIC:
        return bool(live.get(key) == value)
    if key not in live:
        # Zero values such as `readOnly: false` are not always stored; absent means the same.
        return value in (False, 0, None, [], {}, "")
    return is_subset(live[key], value)


def _same_quantity(left: Any, right: Any) -> bool:
    """Compare two quantities, because the API server rewrites them: 1000m becomes 1."""
    first, second = (_QUANTITY.match(str(side)) for side in (left, right))
    return first is not None and second is not None and _number(first) == _number(second)


def _number(quantity: re.Match[str]) -> Decimal:
    return Decimal(quantity[1]) * _FACTORS[quantity[2] or ""]
