"""The configuration files of the cluster's programs, each as one readable file with `$name` where a value goes."""

from __future__ import annotations

from pathlib import Path
from string import Template


def render(name: str, **values: object) -> str:
    """Return the template with its values filled in; a name without a value is an error."""
    text = (Path(__file__).parent / name).read_text()
    return Template(text).substitute({key: str(value) for key, value in values.items()})


def write(name: str, target: Path, **values: object) -> Path:
    """Render into a file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(render(name, **values))
    partial.rename(target)
    return target
