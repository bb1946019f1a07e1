"""Log records as JSON, one object per line: the format of operator and gateway."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes that the logging module or uvicorn sets; all others came in as `extra`."""


class JsonFormatter(logging.Formatter):
    """Format time, level, logger, message, the fields of `extra`, and the traceback of an exception.

    Fields of `extra` that are None are left out, as are those named in `hidden`.
    """

    def __init__(self, hidden: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._hidden = _STANDARD | hidden

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {k: v for k, v in vars(record).items() if k not in self._hidden and v is not None}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # Half a surrogate pair, which JSON from outside can hold, has no UTF-8 form: write it as an escape.
        return json.dumps(entry, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()
