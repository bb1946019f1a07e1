"""Kubernetes Events as decisions hand them over."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EventDraft:
    """An Event to post once the status that it announces is written."""

    reason: str
    message: str
    is_warning: bool = False
