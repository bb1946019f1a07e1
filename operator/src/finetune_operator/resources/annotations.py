"""Annotations and the readiness gate of child objects."""

from typing import Final

from finetune_api.contract import GROUP

ANNOTATION_CONFIG: Final = f"{GROUP}/config"
"""Pod annotation that holds the TrainingConfig or ServingConfig; the downward API mounts it as `CONFIG_PATH`.

An annotation rather than a ConfigMap: one write less, nothing to clean up, and a pod can never see another
generation's configuration.
"""
MAX_CONFIG_BYTES: Final = 200_000
"""Longest configuration that is put into the annotation: the API server caps all annotations together at 256 KiB."""
ANNOTATION_ADAPTER_LIST: Final = f"{GROUP}/adapter-list"
"""Pod annotation with the hash of the AdapterList that the pod should have: a changed pod is one whose volumes the kubelet
refreshes at once, where a changed ConfigMap alone waits for its next round, up to a minute."""
CONDITION_ADAPTERS_VERIFIED: Final = f"{GROUP}/adapters-verified"
"""Readiness gate of the pods of a Rolling service: a pod gets no traffic before the operator has set this condition to True."""
ANNOTATION_DESIRED_HASH: Final = f"{GROUP}/desired-hash"
"""Hash of the manifest as the operator built it: equal hash and no drift means there is nothing to apply."""
