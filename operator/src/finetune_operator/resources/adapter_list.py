"""Which adapters servers have. A Hot service tells running ones, by a ConfigMap: no pod template changes, so no pod restarts.

Under the name that clients use stands the version that was proven, or nothing. A version that is yet to be proven stands
beside it as a candidate, under a name that no adapter can have: whatever is wrong with it, the old one's clients never notice.
Pods of a Rolling service have one version of each adapter from their start to their end, and never look at a list.
"""

import hashlib
import hmac
from typing import Final

from pydantic import ValidationError

from finetune_api.contract import ADAPTER_LIST_FILE
from finetune_api.serving import AdapterList, Promotion, PromotionRequest, ServedAdapter, token_digest
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import AdapterReference, InferenceService, ServedAdapterStatus, ServedVersion
from finetune_operator.resources import Manifest
from finetune_operator.resources.child import build_child, content_hash
from finetune_operator.resources.mounts import ADAPTERS_MOUNT
from finetune_operator.resources.names import adapter_list_name
from finetune_operator.settings import Settings

CANDIDATE_CHARACTERS: Final = 12
"""Of a version's digest: enough to tell it from all that were candidates before."""


def build_adapter_list(service: InferenceService, settings: Settings) -> Manifest:
    """What the servers should have now, from what is asked for and what was proven so far."""
    known = {status.name: status for status in service.status.adapters}
    adapters = [entry for a in service.spec.adapters for entry in _entries(service, a, known.get(a.name), settings)]
    text = AdapterList(adapters=adapters).model_dump_json(by_alias=True, exclude_none=True)
    name = adapter_list_name(service.metadata.name)
    return build_child(service, "v1", "ConfigMap", name, data={ADAPTER_LIST_FILE: text})


def configured_adapters(service: InferenceService) -> list[ServedAdapter]:
    """What the pods of a Rolling service have, by name: another order in the spec is no reason for new pods."""
    adapters = sorted(service.spec.adapters, key=lambda adapter: adapter.name) if is_rolling(service) else []
    return [_entry(a.name, ServedVersion(source=a.source, digest=a.digest)) for a in adapters]


def is_rolling(service: InferenceService) -> bool:
    """Whether adapters change with the pods, and not in them."""
    return service.spec.rollout.mode == "Rolling"


def list_hash(adapter_list: Manifest) -> str:
    """Identifies the content of the ConfigMap."""
    return content_hash(adapter_list["data"])


def is_served(adapter: AdapterReference, status: ServedAdapterStatus | None) -> bool:
    """Whether clients get what is asked for, rather than an older version or none."""
    served = status.served if status is not None else None
    return served is not None and served.source == adapter.source and adapter.digest in (None, served.digest)


def probed_name(service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus | None) -> str:
    """What the version that is asked for is called now: by its own name once it is served, or in pods of its own."""
    return adapter.name if is_rolling(service) or is_served(adapter, status) else candidate_name(adapter)


def candidate_name(adapter: AdapterReference) -> str:
    """`NAME@VERSION`: no adapter's own name has an @."""
    version = adapter.digest.removeprefix("sha256:") if adapter.digest else content_hash(adapter.source)
    return f"{adapter.name}@{version[:CANDIDATE_CHARACTERS]}"


def probed_hash(service: InferenceService, adapter: AdapterReference, name: str) -> str:
    """Identifies what a verdict is about: the base model as it is served, the version, and the name that was asked for."""
    base = [service.spec.model.to_dict(), service.spec.max_model_length]
    return content_hash([base, {**adapter.to_dict(), "metrics": None}, name])


def is_disproven(service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus | None) -> bool:
    """Whether a server had this very version in memory and answered wrongly: it is not kept there for nothing.

    One that a server could not load stays listed, because its folder may still come. Pods of a Rolling service keep what they
    have: they get no traffic, and the next version brings others.
    """
    if (
        is_rolling(service)
        or status is None
        or status.probed_hash != probed_hash(service, adapter, candidate_name(adapter))
    ):
        return False
    return any(replica.loaded and replica.verified == "False" for replica in status.replicas)


def promotions(service: InferenceService, live: Manifest | None, settings: Settings) -> tuple[PromotionRequest, ...]:
    """Candidates of the list in the cluster, `live`, which their adapters' own names should mean by now.

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
    """What promotes this version once, for the spec as it is; None without a key.

    Good for nothing else: not for another service, another version, or the same one when it comes again.
    """
    if settings.promotion_key is None:
        return None
    key = settings.promotion_key.get_secret_value().encode()
    purpose = f"{service.metadata.uid}/{service.metadata.generation}/{candidate_name(adapter)}"
    return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()


def _entries(
    service: InferenceService, adapter: AdapterReference, status: ServedAdapterStatus | None, settings: Settings
) -> list[ServedAdapter]:
    entries = []
    if status is not None and status.served is not None:
        entries.append(_entry(adapter.name, status.served))
    if not is_served(adapter, status) and not is_disproven(service, adapter, status):
        version = ServedVersion(source=adapter.source, digest=adapter.digest)
        token = promotion_token(service, adapter, settings)
        promotion = Promotion(name=adapter.name, token_digest=token_digest(token)) if token is not None else None
        entries.append(_entry(candidate_name(adapter), version, promotion))
    return entries


def _entry(name: str, version: ServedVersion, promotion: Promotion | None = None) -> ServedAdapter:
    path = f"{ADAPTERS_MOUNT}/{parse_source(version.source).path}"
    return ServedAdapter(name=name, path=path, digest=version.digest, promotion=promotion)
