"""One JSON object per line on stderr. Facts with fields; never whole objects, arguments or environments."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; all others were given as `extra`."""
_KOPF_OBJECTS: Final = frozenset({"settings", "k8s_ref", "k8s_skip"})
"""What kopf attaches to its records for its own use."""


class JsonFormatter(logging.Formatter):
    """Formats records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD | _KOPF_OBJECTS}
        entry.update({key: str(value) for key, value in extra.items() if value is not None})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """Send everything through one handler; libraries speak only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("finetune_operator").setLevel(level)
    # It warns that it cannot handle signals outside of the main thread, which is why it is there.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
