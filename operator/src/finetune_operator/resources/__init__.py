"""Pure builders of Kubernetes manifests: typed object and settings in, plain dict out. No clock, client or logger."""

from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""
