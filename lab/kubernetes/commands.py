"""Commands whose output matters only when they fail."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from lab.kubernetes.errors import ClusterError

SHOWN_CHARACTERS = 2000
"""Characters of a failed command's output, from its end."""


def run(*command: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command without input. Raises ClusterError with the end of its output if it fails."""
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        output = (result.stdout + result.stderr).strip()
        raise ClusterError(f"`{' '.join(command)}` failed:\n{output[-SHOWN_CHARACTERS:]}")
