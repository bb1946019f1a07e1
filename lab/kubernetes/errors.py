"""The one error of this tool: a sentence for a person, without a stack trace."""

from __future__ import annotations


class ClusterError(Exception):
    """Something on this machine is missing, too small or broken; the message says what to do about it."""
