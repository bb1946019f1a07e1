"""Candidates that were proven: clients get them by their adapter's own name before the next list arrives.

The next list says the same, but takes the kubelet's time to come. Whoever wrote this one put the hash of a token beside each
candidate, and shows the token when the candidate is proven: it can do nothing but what the next list does, and is of no use to
anybody who reads the list, the token, or both.
"""

import hmac
from collections.abc import Sequence

from finetune_api.serving import ServedAdapter, token_digest
from finetune_inference.adapters.registry import UnknownModelError


class WrongTokenError(Exception):
    """The token is not the one that the list of adapters was written with."""


class NotPromotedError(Exception):
    """The adapter's own name does not mean the candidate, though it should; the message says why."""


class ListedAdapters:
    """What the list says, and which of its candidates were promoted. One thread at a time works with it."""

    def __init__(self) -> None:
        self._listed: Sequence[ServedAdapter] = ()
        self._promoted: dict[str, ServedAdapter] = {}
        """What takes the place of candidates, by digest of their token."""

    def update(self, listed: Sequence[ServedAdapter]) -> None:
        """Take note of the list. What it has no candidate of any more was promoted for the last one."""
        self._listed = listed
        offered = {entry.promotion.token_digest for entry in listed if entry.promotion}
        self._promoted = {digest: entry for digest, entry in self._promoted.items() if digest in offered}

    def promote(self, candidate: str, token: str, digest: str | None) -> str:
        """Let the adapter's own name mean a candidate, of whose version `digest` was loaded; returns that name.

        Raises UnknownModelError if the list has no such candidate, WrongTokenError if the token is not its own.
        """
        for entry in self._listed:
            if entry.name == candidate and entry.promotion:
                break
        else:
            raise UnknownModelError(f"The list of adapters has no candidate {candidate!r}.")
        if not hmac.compare_digest(token_digest(token), entry.promotion.token_digest):
            raise WrongTokenError(f"The token is not the one that was made for the candidate {candidate!r}.")
        # With the digest of what was proven: its folder may have another version by now.
        version = ServedAdapter(name=entry.promotion.name, path=entry.path, digest=digest)
        self._promoted[entry.promotion.token_digest] = version
        return version.name

    @property
    def wanted(self) -> list[ServedAdapter]:
        """What is to be served: promoted candidates instead of what had their name before."""
        taken = {entry.name for entry in self._promoted.values()}
        wanted = []
        for entry in self._listed:
            promoted = self._promoted.get(entry.promotion.token_digest) if entry.promotion else None
            if promoted or entry.name not in taken:
                wanted.append(promoted or entry.model_copy(update={"promotion": None}))
        return wanted
