"""pip in an environment of its own: the checkout's environment may not exist yet, and uv downloads no wheels as files."""

from __future__ import annotations

import subprocess

from lab.kubernetes.binaries import cache_directory
from lab.kubernetes.errors import ClusterError


def pip(*arguments: str) -> None:
    """Run pip; its environment is made first if it does not exist."""
    venv = cache_directory() / "pip"
    if not (venv / "bin" / "pip").exists():
        _run("python3", "-m", "venv", str(venv))
    _run(str(venv / "bin" / "pip"), "--disable-pip-version-check", "--quiet", *arguments)


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        output = (result.stdout + result.stderr).strip()
        raise ClusterError(f"`{' '.join(command)}` failed:\n{output[-2000:]}")
