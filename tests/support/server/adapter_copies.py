"""Copies of a finished job's adapter, beside it on its claim, as entries of an InferenceService's spec.adapters."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.cluster.api import Raw
from support.cluster.local_kubernetes import DEMO_NAMESPACE, LocalKubernetes
from support.server.tampered_adapter import renewed, sabotage


@dataclass(frozen=True)
class AdapterCopies:
    """Copies in a folder; each has its own digest, and the fingerprint of the genuine adapter."""

    claim: str
    genuine: Path
    """Path of the genuine adapter on this machine."""
    directory: Path
    """Folder of the copies."""
    fingerprint: Raw

    def renewed(self, folder: str, name: str) -> Raw:
        """Make an adapter called `name` with the same weights."""
        return self._entry(folder, name, renewed(self.genuine, self.directory / folder))

    def sabotaged(self, how: str, name: str) -> Raw:
        """Make an adapter called `name` with other weights, see `sabotage`."""
        return self._entry(how, name, sabotage(self.genuine, self.directory / how, how))

    def _entry(self, folder: str, name: str, digest: str) -> Raw:
        source = f"pvc://{self.claim}/{self.directory.name}/{folder}"
        return {"name": name, "source": source, "digest": digest, "fingerprint": self.fingerprint}


@contextmanager
def adapter_copies(kubernetes: LocalKubernetes, job: Raw, folder: str) -> Iterator[AdapterCopies]:
    """Make copies for a job in the demonstration's namespace; their folder, at the top of its claim, is removed at the end."""
    adapter = job["status"]["adapter"]
    claim, _, path = adapter["uri"].removeprefix("pvc://").partition("/")
    volume = kubernetes.volume_of(DEMO_NAMESPACE, claim)
    shutil.rmtree(volume / folder, ignore_errors=True)
    try:
        yield AdapterCopies(claim, volume / path, volume / folder, adapter["fingerprint"])
    finally:
        shutil.rmtree(volume / folder, ignore_errors=True)
