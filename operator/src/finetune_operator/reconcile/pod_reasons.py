"""What the kubelet says of a waiting container, sorted, and messages without secrets."""

import re
from typing import Final

IMAGE_REASONS: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
"""Waiting reasons of the kubelet that mean: this image does not arrive."""


CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
"""Waiting reasons of the kubelet that mean: the container cannot be made; almost always a missing Secret or key."""


_SECRETS: Final = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?i:bearer\s+)[A-Za-z0-9._~+/-]{8,}")
"""Hub tokens, passwords in URLs, bearer tokens."""


def redact(text: str) -> str:
    """Text without the credentials that libraries like to print."""
    return _SECRETS.sub("[redacted]", text)
