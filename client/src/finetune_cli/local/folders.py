"""The work directory: a namespace of the cluster as folders, and the state that makes a run resumable."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """Names of everything in a work directory."""

    root: Path

    @property
    def claims(self) -> Path:
        """One folder per PersistentVolumeClaim. Models, datasets on claims and adapters are here."""
        return self.root / "claims"

    @property
    def config_maps(self) -> Path:
        """Files of mounted ConfigMaps, one folder each."""
        return self.root / "configmaps"

    @property
    def objects(self) -> Path:
        """Objects of the cluster, one JSON file each."""
        return self.root / "objects"

    @property
    def pods(self) -> Path:
        """One folder per pod: its configuration, its logs, its last words."""
        return self.root / "pods"

    @property
    def scratch(self) -> Path:
        """Scratch volume of all pods: a model of the hub is downloaded once for trainer and server."""
        return self.root / "scratch"

    @property
    def lock(self) -> Path:
        """Held by the command and by the processes that it started."""
        return self.root / "lock"

    @property
    def operator_log(self) -> Path:
        """Log of the reconcilers."""
        return self.root / "operator.log"

    def claim(self, name: str) -> Path:
        """Folder of a claim."""
        return inside(self.claims, name)

    def config_map(self, name: str) -> Path:
        """Folder of a mounted ConfigMap."""
        return inside(self.config_maps, name)

    def pod(self, name: str) -> Path:
        """Folder of a pod."""
        return inside(self.pods, name)

    def object(self, plural: str, namespace: str, name: str) -> Path:
        """File of an object."""
        return inside(self.objects, plural, namespace, f"{name}.json")


def inside(folder: Path, *parts: str) -> Path:
    """Return a path below a folder. Raises ValueError for parts that lead out of it, whoever named them."""
    if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        raise ValueError(f"{'/'.join(parts)} is not a path below {folder}")
    return folder.joinpath(*parts)
