"""Source URIs: the one grammar for where models, datasets and adapters live.

    pvc://CLAIM/PATH          a file or folder on a PersistentVolumeClaim of the job's own namespace
    configmap://NAME/KEY      a ConfigMap key of the job's own namespace (datasets only)
    hf://ORG/NAME             a Hugging Face repository

There is no namespace and no host path in the grammar, on purpose: references never leave the job's namespace.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_SOURCE_LENGTH: Final = 512
"""Characters; also bounds the cost of the CEL rules on the field."""

_DNS_LABEL = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*"
_GRAMMAR: Final = {
    "pvc": re.compile(rf"pvc://(?P<name>{_DNS_LABEL})/(?P<path>{_SEGMENT}(/{_SEGMENT})*)"),
    "configmap": re.compile(rf"configmap://(?P<name>{_DNS_LABEL})/(?P<path>[A-Za-z0-9_.-]+)"),
    "hf": re.compile(rf"hf://(?P<name>{_SEGMENT})/(?P<path>{_SEGMENT})"),
}
_EXAMPLES: Final = {
    "pvc": "pvc://CLAIM/PATH",
    "configmap": "configmap://NAME/KEY",
    "hf": "hf://ORG/NAME",
}


@dataclass(frozen=True)
class Source:
    """A parsed source URI."""

    scheme: str
    """`pvc`, `configmap` or `hf`."""
    name: str
    """Claim, ConfigMap or hub organisation."""
    path: str
    """Path inside the claim, key of the ConfigMap, or repository name; never absolute, never with `..`."""

    @property
    def basename(self) -> str:
        """Last path component: what people call the thing."""
        return self.path.rsplit("/", 1)[-1]


def parse_source(uri: str, allowed: tuple[str, ...] = ("pvc", "configmap", "hf")) -> Source:
    """Parse a source URI, or raise ValueError with what was found and what is expected."""
    scheme = uri.partition("://")[0]
    expected = " or ".join(_EXAMPLES[s] for s in allowed)
    if scheme not in allowed:
        raise ValueError(f"{uri!r} is not a supported source; use {expected}")
    if ".." in uri.split("/"):
        raise ValueError(f"{uri!r} contains '..'; sources cannot leave their volume")
    match = _GRAMMAR[scheme].fullmatch(uri)
    if not match or len(uri) > MAX_SOURCE_LENGTH:
        raise ValueError(f"{uri!r} is malformed; use {_EXAMPLES[scheme]}")
    return Source(scheme=scheme, name=match["name"], path=match["path"])


def cel_rules(allowed: tuple[str, ...]) -> list[dict[str, str]]:
    """CEL rules that say the same as `parse_source`, for the field that holds such a URI."""
    expected = " or ".join(_EXAMPLES[s] for s in allowed)
    scheme_rule = " || ".join(f"self.startsWith('{s}://')" for s in allowed)
    grammar = " || ".join(
        "self.matches('^{}$')".format(re.sub(r"\?P<\w+>", "", _GRAMMAR[s].pattern).replace("\\", "\\\\"))
        for s in allowed
    )
    return [
        {"rule": scheme_rule, "message": f"use {expected}"},
        {"rule": "!self.split('/').exists(s, s == '..')", "message": "a source cannot contain '..'"},
        {"rule": grammar, "message": f"malformed source; use {expected}"},
    ]
