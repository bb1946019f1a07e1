"""pip in an environment of its own: the checkout's environment may not exist yet, and uv downloads no wheels as files."""

from __future__ import annotations

from lab.kubernetes.binaries import cache_directory
from lab.kubernetes.commands import run


def pip(*arguments: str) -> None:
    """Run pip; its environment is made first if it does not exist."""
    venv = cache_directory() / "pip"
    if not (venv / "bin" / "pip").exists():
        run("python3", "-m", "venv", str(venv))
    run(str(venv / "bin" / "pip"), "--disable-pip-version-check", "--quiet", *arguments)
