"""Errors, named by what happens next. The core raises them; only the controller turns them into a retry or a condition.

`kubernetes.aio`'s ApiException is converted once, in `io.cluster`, with verb, kind, namespace and name.
"""

from finetune_api.reasons import Reason


class OperatorError(Exception):
    """Base of all errors that the operator raises."""


class StalledError(OperatorError):
    """The user must change something; a retry with the same input would fail again."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ClusterError(OperatorError):
    """The API server refused a request or could not be reached (`status` is then 0)."""

    def __init__(self, verb: str, what: str, status: int, message: str) -> None:
        super().__init__(f"cannot {verb} {what}: {status or 'no answer'}: {message}")
        self.status = status
        self.message = message

    @property
    def is_conflict(self) -> bool:
        """True if another client wrote first, or the object exists already."""
        return self.status == 409

    @property
    def is_invalid(self) -> bool:
        """True if schema or validation reject the object, so that it can never be stored as it is."""
        return self.status in (400, 422)

    @property
    def is_refusal(self) -> bool:
        """True if the API server rejected the object: as invalid, or by a quota or a policy."""
        return self.is_invalid or self.status == 403

    @property
    def is_outage(self) -> bool:
        """True if the API server is down, restarting, overloaded, or hidden behind a proxy that answers itself."""
        return self.status in (0, 429) or self.status >= 500 or 300 <= self.status < 400


class MalformedReplyError(ClusterError):
    """A reply that no API server gives: a proxy's page, half a document, or an object of another kind. Counts as no answer."""

    def __init__(self, verb: str, what: str, problem: str) -> None:
        super().__init__(verb, what, 0, problem)


class UnreadableObjectError(OperatorError):
    """An object of the cluster does not have the form that its kind has."""

    def __init__(self, kind: str, name: str, problem: str) -> None:
        super().__init__(f"{kind} {name} cannot be read: {problem}")
        self.message = str(self)
