"""Source URIs: the grammar of references to models, datasets and adapters.

    pvc://CLAIM/PATH          a file or folder on a PersistentVolumeClaim in the job's namespace
    configmap://NAME/KEY      a ConfigMap key in the job's namespace (datasets only)
    hf://ORG/NAME             a Hugging Face repository; for datasets also hf://ORG/NAME@REVISION?config=CONFIG&split=SPLIT
    https://HOST/PATH         a file on a public web server (datasets only)
    s3://BUCKET/KEY           an object of an S3-compatible store (datasets only)

The grammar has no namespace and no host path, so that references never leave the job's namespace.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_SOURCE_LENGTH: Final = 512
"""Length in characters; it also bounds the cost of the CEL rules on the field."""

_DNS_LABEL = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_HUB_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*"
_CONFIG = r"config=[A-Za-z0-9_][A-Za-z0-9_.+/-]*"
_SPLIT = r"split=[A-Za-z0-9_][A-Za-z0-9_.-]*"
SELECTION: Final = rf"(\?({_CONFIG}(&{_SPLIT})?|{_SPLIT}(&{_CONFIG})?))?"
"""End of the URI of a hub dataset: `?config=CONFIG`, `?split=SPLIT`, or both in any order."""
_GRAMMAR: Final = {
    "pvc": re.compile(rf"pvc://(?P<name>{_DNS_LABEL})/(?P<path>{_SEGMENT}(/{_SEGMENT})*)"),
    "configmap": re.compile(rf"configmap://(?P<name>{_DNS_LABEL})/(?P<path>[A-Za-z0-9_.-]+)"),
    "hf": re.compile(rf"hf://(?P<name>{_HUB_NAME})/(?P<path>{_HUB_NAME}(@{_SEGMENT})?)"),
    # No query and no user: both often contain a credential, which does not belong into a spec.
    "https": re.compile(rf"https://(?P<name>[A-Za-z0-9][A-Za-z0-9.-]*(:{_PORT})?)/(?P<path>[A-Za-z0-9_.~%+=@,/-]+)"),
    "s3": re.compile(rf"s3://(?P<name>[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9])/(?P<path>{_SEGMENT}(/{_SEGMENT})*)"),
}
_EXAMPLES: Final = {
    "pvc": "pvc://CLAIM/PATH",
    "configmap": "configmap://NAME/KEY",
    "hf": "hf://ORG/NAME",
    "https": "https://HOST/PATH",
    "s3": "s3://BUCKET/KEY",
}


MOUNTED: Final = ("pvc", "configmap")
"""Schemes of sources that are mounted as a volume."""
DOWNLOADED: Final = ("hf", "https", "s3")
"""Schemes of sources that the trainer downloads."""
DATASET_SCHEMES: Final = (*MOUNTED, *DOWNLOADED)


@dataclass(frozen=True)
class Source:
    """A parsed source URI."""

    scheme: str
    """`pvc`, `configmap`, `hf`, `https` or `s3`."""
    name: str
    """Claim, ConfigMap, hub organization, host or bucket."""
    path: str
    """Path inside the claim or on the host, key of the ConfigMap or object, repository name; never with `..`."""
    config: str | None = None
    """Config (subset) of a hub dataset, if the URI chooses one."""
    split: str | None = None
    """Split of a hub dataset, if the URI chooses one."""

    @property
    def basename(self) -> str:
        """Last component of the path, which people use as a name."""
        return self.path.rsplit("/", 1)[-1]


def parse_source(uri: str, allowed: tuple[str, ...] = tuple(_GRAMMAR), *, selects: bool = True) -> Source:
    """Parse a source URI, or raise ValueError with what was found and what is expected.

    Only a dataset `selects` a config and a split; a model has neither.
    """
    scheme = uri.partition("://")[0]
    if scheme not in allowed:
        raise ValueError(
            f"{uri!r} is not a supported source; use {' or '.join(_example(s, selects=selects) for s in allowed)}"
        )
    if ".." in uri.split("/"):
        raise ValueError(f"{uri!r} contains '..'; sources cannot leave their volume")
    match = re.fullmatch(_pattern(scheme, selects=selects), uri)
    if not match or len(uri) > MAX_SOURCE_LENGTH:
        raise ValueError(f"{uri!r} is malformed; use {_example(scheme, selects=selects)}")
    chosen = dict(pair.split("=", 1) for pair in uri.partition("?")[2].split("&") if pair)
    return Source(scheme, match["name"], match["path"], chosen.get("config"), chosen.get("split"))


def cel_rules(allowed: tuple[str, ...], *, selects: bool = True) -> list[dict[str, str]]:
    """Return CEL rules equivalent to `parse_source`, for a field that holds such a URI."""
    expected = " or ".join(_example(s, selects=selects) for s in allowed)
    scheme_rule = " || ".join(f"self.startsWith('{s}://')" for s in allowed)
    grammar = " || ".join(
        "self.matches('^{}$')".format(re.sub(r"\?P<\w+>", "", _pattern(s, selects=selects)).replace("\\", "\\\\"))
        for s in allowed
    )
    return [
        {"rule": scheme_rule, "message": f"use {expected}"},
        {"rule": "!self.split('/').exists(s, s == '..')", "message": "a source cannot contain '..'"},
        {"rule": grammar, "message": f"malformed source; use {expected}"},
    ]


def _pattern(scheme: str, *, selects: bool) -> str:
    return _GRAMMAR[scheme].pattern + (SELECTION if selects and scheme == "hf" else "")


def _example(scheme: str, *, selects: bool) -> str:
    return _EXAMPLES[scheme] + ("[@REVISION][?config=CONFIG&split=SPLIT]" if selects and scheme == "hf" else "")
