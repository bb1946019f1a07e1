"""Annotations and the readiness gate of child objects."""

from typing import Final

from finetune_api.contract import GROUP

ANNOTATION_CONFIG: Final = f"{GROUP}/config"
"""Pod annotation that holds the TrainingConfig or ServingConfig; the downward API mounts it as `CONFIG_PATH`.

An annotation rather than a ConfigMap saves a write and a cleanup, and a pod can never see the configuration of another
generation.
"""
MAX_CONFIG_BYTES: Final = 200_000
"""Largest configuration in bytes; the API server limits all annotations together to 256 KiB."""
ANNOTATION_ADAPTER_LIST: Final = f"{GROUP}/adapter-list"
"""Pod annotation with the hash of the AdapterList that the pod should have. The kubelet refreshes the volumes of a changed pod at
once; a changed ConfigMap alone waits up to a minute for its next sync."""
CONDITION_ADAPTERS_VERIFIED: Final = f"{GROUP}/adapters-verified"
"""Readiness gate of the pods of a Rolling service: a pod gets no traffic until the operator sets this condition to True."""
ANNOTATION_DESIRED_HASH: Final = f"{GROUP}/desired-hash"
"""Hash of the manifest as the operator built it. With an equal hash and no drift there is nothing to apply."""
