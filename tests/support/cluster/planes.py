"""A control plane for tests outside of the apiserver ring's own folder, and why there may be none."""

from collections.abc import Sequence

from lab.kubernetes.binaries import CONTROL_PLANE_BINARIES, missing_binaries


def missing(also: Sequence[str] = ()) -> str | None:
    """A sentence that says what is not built yet, or None."""
    names = missing_binaries([*CONTROL_PLANE_BINARIES, *also])
    return f"{', '.join(names)} not built; run `make binaries`" if names else None
