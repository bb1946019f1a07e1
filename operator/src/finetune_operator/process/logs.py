"""Logging of the operator: one JSON object per line on standard error."""

import logging
import sys
from typing import Final

from finetune_api.json_logs import JsonFormatter

KOPF_FIELDS: Final = frozenset({"settings", "k8s_ref", "k8s_skip"})
"""Fields that kopf attaches to its records for its own use."""


def configure_logging(level: str) -> None:
    """Send all records through one handler. Libraries log warnings and errors only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(hidden=KOPF_FIELDS))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("finetune_operator").setLevel(level)
    # kopf warns that it cannot handle signals outside of the main thread; it runs outside on purpose.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
