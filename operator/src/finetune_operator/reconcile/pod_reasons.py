"""Waiting reasons of the kubelet, sorted, and messages without secrets."""

import re
from typing import Final

IMAGE_REASONS: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
"""Waiting reasons of the kubelet for an image that it cannot pull."""
CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
"""Waiting reasons of the kubelet for a container that cannot be created."""
MISSING_REFERENCE: Final = "CreateContainerConfigError"
"""Waiting reason of the kubelet for a Secret or key that does not exist: of all references of our pods only the one to the
hub token (spec.model.secretRef) is not optional."""

_SECRETS: Final = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?i:bearer\s+)[A-Za-z0-9._~+/-]{8,}")
"""Hub tokens, passwords in URLs, bearer tokens."""


def redact(text: str) -> str:
    """Remove the credentials that libraries like to print."""
    return _SECRETS.sub("[redacted]", text)
