"""Logging of the operator: one JSON object per line on standard error."""

import logging
import sys

from finetune_api.json_logs import JsonFormatter


def configure_logging(level: str) -> None:
    """Send all records through one handler. Libraries log warnings and errors only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("finetune_operator").setLevel(level)
