"""Log lines of the trainer: to stderr, one fact a line, `key=value` after a few words."""

import logging
import sys
import warnings


def configure_logging(level: str) -> None:
    """Send our own log to stderr; of the libraries, only warnings. Called by the commands, never at import."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("finetune_trainer").setLevel(level)
    # Deprecations inside libraries are for their developers and for ours, who see them in the tests.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
