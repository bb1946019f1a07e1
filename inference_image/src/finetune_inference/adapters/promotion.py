"""Promotion: a verified candidate is served by its adapter's own name before the next adapter list arrives.

The next list says the same, but the kubelet delivers it later. The writer of the list puts the hash of a token beside each
candidate, and presents the token once the candidate is verified. The token only brings forward the next list, so it is of
no use to someone who reads the list, the token, or both.
"""

import hmac
from collections.abc import Sequence

from finetune_api.serving import ServedAdapter, token_digest
from finetune_inference.adapters.registry import UnknownModelError


class WrongTokenError(Exception):
    """The token does not match the hash in the adapter list."""


class NotPromotedError(Exception):
    """The candidate cannot be served by its adapter's own name; the message gives the reason."""


class ListedAdapters:
    """Adapter list with its promoted candidates. One thread at a time may use it."""

    def __init__(self) -> None:
        self._listed: Sequence[ServedAdapter] = ()
        self._promoted: dict[str, ServedAdapter] = {}
        """Entries that replace candidates, by the digest of the candidate's token."""

    def update(self, listed: Sequence[ServedAdapter]) -> None:
        """Replace the list, and forget promotions whose candidate is no longer listed."""
        self._listed = listed
        offered = {entry.promotion.token_digest for entry in listed if entry.promotion}
        self._promoted = {digest: entry for digest, entry in self._promoted.items() if digest in offered}

    def promote(self, candidate: str, token: str, digest: str | None) -> str:
        """Promote a candidate whose loaded version has `digest`. Returns the adapter's own name.

        Raises UnknownModelError if the list has no such candidate, WrongTokenError if the token does not match.
        """
        for entry in self._listed:
            if entry.name == candidate and entry.promotion:
                break
        else:
            raise UnknownModelError(f"The adapter list has no candidate {candidate!r}.")
        if not hmac.compare_digest(token_digest(token), entry.promotion.token_digest):
            raise WrongTokenError(f"The token does not match the candidate {candidate!r}.")
        # With the digest of the verified version, because the folder may hold another one by now.
        version = ServedAdapter(name=entry.promotion.name, path=entry.path, digest=digest)
        self._promoted[entry.promotion.token_digest] = version
        return version.name

    @property
    def wanted(self) -> list[ServedAdapter]:
        """Entries to serve: promoted candidates replace the entries that had their name before."""
        taken = {entry.name for entry in self._promoted.values()}
        wanted = []
        for entry in self._listed:
            promoted = self._promoted.get(entry.promotion.token_digest) if entry.promotion else None
            if promoted or entry.name not in taken:
                wanted.append(promoted or entry.model_copy(update={"promotion": None}))
        return wanted
