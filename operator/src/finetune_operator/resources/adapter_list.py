"""The list of adapters that servers of a Hot service read from a ConfigMap: no pod template changes, so no pod restarts.

Which versions stand in it, and under which names, is decided elsewhere. Pods of a Rolling service have one version of each
adapter from their start to their end, and never read a list.
"""

from collections.abc import Sequence

from finetune_api.contract import ADAPTER_LIST_FILE
from finetune_api.serving import AdapterList, Promotion, ServedAdapter
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import InferenceService, ServedVersion
from finetune_operator.resources import Manifest
from finetune_operator.resources.child import build_child, content_hash
from finetune_operator.resources.mounts import ADAPTERS_MOUNT
from finetune_operator.resources.names import adapter_list_name


def build_adapter_list(service: InferenceService, listed: Sequence[ServedAdapter]) -> Manifest:
    """Build the ConfigMap of the adapters that the servers should have now."""
    text = AdapterList(adapters=list(listed)).model_dump_json(by_alias=True, exclude_none=True)
    name = adapter_list_name(service.metadata.name)
    return build_child(service, "v1", "ConfigMap", name, data={ADAPTER_LIST_FILE: text})


def build_listed_adapter(name: str, version: ServedVersion, promotion: Promotion | None = None) -> ServedAdapter:
    """Build the entry of a version that servers have under `name`."""
    path = f"{ADAPTERS_MOUNT}/{parse_source(version.source).path}"
    return ServedAdapter(name=name, path=path, digest=version.digest, promotion=promotion)


def configured_adapters(service: InferenceService) -> list[ServedAdapter]:
    """Build the adapters of a Rolling service's pods, ordered by name: another order in the spec is no reason for new pods."""
    adapters = sorted(service.spec.adapters, key=lambda adapter: adapter.name) if is_rolling(service) else []
    return [build_listed_adapter(a.name, ServedVersion(source=a.source, digest=a.digest)) for a in adapters]


def is_rolling(service: InferenceService) -> bool:
    """Tell whether adapters change with the pods (Rolling), and not in running ones (Hot)."""
    return service.spec.rollout.mode == "Rolling"


def list_hash(adapter_list: Manifest) -> str:
    """Return the hash that identifies the content of the ConfigMap."""
    return content_hash(adapter_list["data"])
