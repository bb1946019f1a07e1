"""Log lines of the trainer: on stderr, one event per line, `key=value` after a few words."""

import logging
import sys
import warnings


def configure_logging(level: str) -> None:
    """Log to stderr: our own messages from `level` on, those of libraries from WARNING on. Never called at import."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("finetune_trainer").setLevel(level)
    # Deprecation warnings are for developers, who see them in the tests.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
