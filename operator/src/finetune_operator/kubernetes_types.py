"""Types of Kubernetes' own JSON that several layers of the operator share, and accessors that check them.

The API server checks its own kinds; after a change of a CRD, or through a proxy, anything may arrive. An accessor raises
TypeError for a value of another type, so that a reader never works with a list where it expects a text.
"""

from typing import Any, Literal

Raw = dict[str, Any]
"""An object of the API server as it was read."""
Truth = Literal["True", "False", "Unknown"]
"""`status` of a condition."""


def text_of(raw: Raw, key: str) -> str:
    """Return a text; empty if it is absent."""
    value = raw.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{key} is {_shown(value)}; expected a text")
    return value


def map_of(raw: Raw, key: str) -> Raw:
    """Return an object; empty if it is absent."""
    value = raw.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{key} is {_shown(value)}; expected an object")
    return value


def texts_of(raw: Raw, key: str) -> dict[str, str]:
    """Return a map of texts, such as labels; empty if it is absent."""
    found = map_of(raw, key)
    for name, value in found.items():
        if not isinstance(value, str):
            raise TypeError(f"{key}.{name} is {_shown(value)}; expected a text")
    return found


def maps_of(raw: Raw, key: str) -> list[Raw]:
    """Return a list of objects; empty if it is absent."""
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError(f"{key} is {_shown(value)}; expected a list of objects")
    return value


def number_of(raw: Raw, key: str, default: int = 0) -> int:
    """Return an integer; `default` if it is absent."""
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} is {_shown(value)}; expected an integer")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
