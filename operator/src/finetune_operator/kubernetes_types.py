"""Types of Kubernetes' own JSON that several layers of the operator share."""

from typing import Any, Literal

Raw = dict[str, Any]
"""An object of the API server as it was read."""
Truth = Literal["True", "False", "Unknown"]
"""`status` of a condition."""
