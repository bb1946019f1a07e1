"""The versions of adapters that servers have, and the names they have them under. Pure.

Under the name that clients use stands the version that was verified, or nothing. A version that is yet to be verified stands
beside it as a candidate, under a name that no adapter can have, so that its faults never reach the clients of the old one.
Pods of a Rolling service have one version of each adapter from their start to their end, under its own name.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from finetune_api.contract import ADAPTER_LIST_FILE
from finetune_api.serving import AdapterList, Promotion, PromotionRequest, ServedAdapter, token_digest
from finetune_api.v1alpha1 import AdapterReference, InferenceService, ServedAdapterStatus, ServedVersion
from finetune_operator.resources import Manifest
from finetune_operator.resources.adapter_list import build_listed_adapter, is_rolling
from finetune_operator.resources.child import content_hash
from finetune_operator.settings import Settings

CANDIDATE_CHARACTERS: Final = 12
"""Characters of a version's digest in a candidate's name: enough to tell it from all earlier candidates."""


@dataclass(frozen=True)
class RequestedVersion:
    """The version of an adapter that the spec asks for, as servers have it now."""

    adapter: AdapterReference
    name: str
    """Name in the servers: the adapter's own once the version is served, or in pods of its own."""
    digest: str | None
    """Digest that servers must report under that name; None if none is known yet."""
    probed_hash: str
    """Identifies the subject of a verdict: the base model as it is served, the version, and the name."""
    served_hash: str
    """The same once the version is served under the adapter's own name."""
    is_rolling: bool
    is_served: bool
    """Clients get this version, rather than an older one or none."""
    is_disproven: bool
    """A server had this very version in memory and answered wrongly, so it is not kept there."""


def requested_version(
    service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus | None
) -> RequestedVersion:
    """Return the version that the spec asks for; `status` is the adapter's verdict so far."""
    rolling, served = is_rolling(service), is_served(adapter, status)
    name = adapter.name if rolling or served else candidate_name(adapter)
    digest = adapter.digest
    if status is not None and status.served is not None and served and not rolling:
        # Listed with the digest that was verified; pods of a Rolling service know no more than the spec.
        digest = status.served.digest
    return RequestedVersion(
        adapter,
        name,
        digest,
        probed_hash=probed_hash(service, adapter, name),
        served_hash=probed_hash(service, adapter, adapter.name),
        is_rolling=rolling,
        is_served=served,
        is_disproven=_is_disproven(service, adapter, status),
    )


def listed_adapters(
    service: InferenceService, statuses: Iterable[ServedAdapterStatus], settings: Settings
) -> tuple[ServedAdapter, ...]:
    """List what servers of a Hot service should have, from the spec and the verdicts so far."""
    if is_rolling(service):
        return ()
    known = {status.name: status for status in statuses}
    return tuple(
        entry
        for adapter in service.spec.adapters
        for entry in _entries(service, adapter, known.get(adapter.name), settings)
    )


def promotions(service: InferenceService, live: Manifest | None, settings: Settings) -> tuple[PromotionRequest, ...]:
    """Find candidates in `live`, the list in the cluster, that should have their adapters' own names by now.

    Not those that were listed for another spec or by a process with another key: servers would refuse the token.
    """
    try:
        listed = AdapterList.model_validate_json((live or {})["data"][ADAPTER_LIST_FILE]).adapters
    except (KeyError, TypeError, ValidationError):
        # There is none, or somebody else's; the kubelet brings ours.
        return ()
    offered = {entry.promotion.token_digest for entry in listed if entry.promotion is not None}
    known = {status.name: status for status in service.status.adapters}
    requests = []
    for adapter in service.spec.adapters:
        token, status = promotion_token(service, adapter, settings), known.get(adapter.name)
        served = status.served if status is not None else None
        if token is not None and served is not None and token_digest(token) in offered and is_served(adapter, status):
            requests.append(PromotionRequest(candidate=candidate_name(adapter), token=token, digest=served.digest))
    return tuple(requests)


def promotion_token(service: InferenceService, adapter: AdapterReference, settings: Settings) -> str | None:
    """Return the token that promotes this version once, for the spec as it is; None without a key.

    The token serves for nothing else: not for another service, another version, or the same one when it comes again.
    """
    if settings.promotion_key is None:
        return None
    key = settings.promotion_key.get_secret_value().encode()
    purpose = f"{service.metadata.uid}/{service.metadata.generation}/{candidate_name(adapter)}"
    return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()


def candidate_name(adapter: AdapterReference) -> str:
    """Return `NAME@VERSION`: no adapter's own name has an @."""
    version = adapter.digest.removeprefix("sha256:") if adapter.digest else content_hash(adapter.source)
    return f"{adapter.name}@{version[:CANDIDATE_CHARACTERS]}"


def is_served(adapter: AdapterReference, status: ServedAdapterStatus | None) -> bool:
    """Tell whether clients get the version that the spec asks for."""
    served = status.served if status is not None else None
    return served is not None and served.source == adapter.source and adapter.digest in (None, served.digest)


def probed_hash(service: InferenceService, adapter: AdapterReference, name: str) -> str:
    """Identify the subject of a verdict: the base model as it is served, the version, and its name in the servers."""
    base = [service.spec.model.to_dict(), service.spec.max_model_length]
    return content_hash([base, {**adapter.to_dict(), "metrics": None}, name])


def _is_disproven(service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus | None) -> bool:
    """Tell whether the version leaves the servers' memory.

    One that a server could not load stays listed, because its folder may still come. Pods of a Rolling service keep theirs:
    they get no traffic, and the next version brings others.
    """
    if is_rolling(service) or status is None:
        return False
    if status.probed_hash != probed_hash(service, adapter, candidate_name(adapter)):
        return False
    return any(replica.loaded and replica.verified == "False" for replica in status.replicas)


def _entries(
    service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus | None, settings: Settings
) -> list[ServedAdapter]:
    entries = []
    if status is not None and status.served is not None:
        entries.append(build_listed_adapter(adapter.name, status.served))
    if not is_served(adapter, status) and not _is_disproven(service, adapter, status):
        version = ServedVersion(source=adapter.source, digest=adapter.digest)
        token = promotion_token(service, adapter, settings)
        promotion = Promotion(name=adapter.name, token_digest=token_digest(token)) if token is not None else None
        entries.append(build_listed_adapter(candidate_name(adapter), version, promotion))
    return entries
