"""Progress of running attempts from the files that trainers write; on a cluster it comes through Redis."""

from pydantic import ValidationError

from finetune_api.outcome import Progress
from finetune_cli.local.folders import Folders
from finetune_cli.local.node import PROGRESS_FILE
from finetune_cli.local.store import LocalCluster
from finetune_operator.io.cluster import PODS
from finetune_operator.io.progress import ProgressReader
from finetune_operator.resources.labels import LABEL_ATTEMPT, LABEL_JOB_UID


class FileProgress(ProgressReader):
    """Reads the figures of an attempt's pod; None if there are none yet."""

    def __init__(self, cluster: LocalCluster, folders: Folders) -> None:
        super().__init__(broker_url=None)
        self._cluster = cluster
        self._folders = folders

    async def read(self, job_uid: str, attempt: int) -> Progress | None:
        """Return the latest figures of an attempt."""
        wanted = {LABEL_JOB_UID: job_uid, LABEL_ATTEMPT: str(attempt)}
        for pod in self._cluster.all(PODS):
            if wanted.items() <= pod["metadata"]["labels"].items():
                try:
                    text = (self._folders.pod(pod["metadata"]["name"]) / PROGRESS_FILE).read_bytes()
                    return Progress.model_validate_json(text)
                except (OSError, ValidationError):
                    return None
        return None
