"""CustomResourceDefinitions, generated from the pydantic models.

pydantic's JSON Schema is not a Kubernetes structural schema; `structural_schema` converts it. Types without a structural
schema (tuples, unions of objects) raise an error.
"""

from typing import Any

from pydantic import BaseModel

from finetune_api import glossary
from finetune_api.base import CEL
from finetune_api.contract import (
    FINETUNE_JOB_KIND,
    FINETUNE_JOB_PLURAL,
    GROUP,
    INFERENCE_SERVICE_KIND,
    INFERENCE_SERVICE_PLURAL,
    VERSION,
)
from finetune_api.v1alpha1 import MUTABLE_FIELDS, FinetuneJob, FinetuneJobSpec, FinetuneJobStatus
from finetune_api.v1alpha1.common import SERVICE_NAME_PATTERN
from finetune_api.v1alpha1.inference_service import InferenceService, InferenceServiceSpec, InferenceServiceStatus

Schema = dict[str, Any]

KEPT_KEYS = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-list-map-keys",
    CEL,
)
"""JSON Schema keys that have the same meaning in a structural schema."""


def build_crds() -> dict[str, Schema]:
    """Return all CRD manifests by file name."""
    finetune_job = _crd(
        kind=FINETUNE_JOB_KIND,
        plural=FINETUNE_JOB_PLURAL,
        short_names=["ftj"],
        description=_sentence(FinetuneJob),
        spec=structural_schema(FinetuneJobSpec),
        status=_explained(structural_schema(FinetuneJobStatus), FINETUNE_JOB_KIND),
        columns=[
            _column("Phase", "string", ".status.phase"),
            _column("Progress", "integer", ".status.progress.percent", "Finished training steps in percent."),
            _column("Step", "integer", ".status.progress.step"),
            _column("Loss", "string", ".status.progress.loss"),
            _column("ETA", "string", ".status.progress.eta"),
            _column("Serving", "string", ".status.serving.state"),
            _column("Age", "date", ".metadata.creationTimestamp"),
            _column("Adapter", "string", ".status.adapter.uri", priority=1),
            _column("Reason", "string", ".status.reason", priority=1),
        ],
    )
    spec = finetune_job["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec[CEL] = spec.get(CEL, []) + immutability_rules(FinetuneJobSpec, MUTABLE_FIELDS)
    inference_service = _crd(
        kind=INFERENCE_SERVICE_KIND,
        plural=INFERENCE_SERVICE_PLURAL,
        short_names=["ftsvc"],
        description=_sentence(InferenceService),
        spec=structural_schema(InferenceServiceSpec),
        status=_explained(structural_schema(InferenceServiceStatus), INFERENCE_SERVICE_KIND),
        columns=[
            _column("Phase", "string", ".status.phase"),
            _column("Ready", "integer", ".status.readyReplicas"),
            _column("Verified", "string", ".status.adaptersSummary", "Verified adapters / all adapters."),
            _column("URL", "string", ".status.url"),
            _column("Age", "date", ".metadata.creationTimestamp"),
            _column("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", priority=1),
        ],
    )
    return {f"{crd['metadata']['name']}.yaml": crd for crd in (finetune_job, inference_service)}


def structural_schema(model: type[BaseModel]) -> Schema:
    """Convert a model to a structural schema: inline `$ref`, unwrap Optional, drop titles, default empty objects."""
    document = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(document, document.get("$defs", {}), model.__name__)


def immutability_rules(spec: type[BaseModel], mutable: tuple[str, ...]) -> list[dict[str, str]]:
    """Return CEL transition rules for spec. A rule on an optional field itself would not see it being added or removed."""
    rules = []
    for name, field in spec.model_fields.items():
        alias = field.alias or name
        if alias in mutable:
            continue
        rule = f"self.{alias} == oldSelf.{alias}"
        if not field.is_required():
            rule = f"has(self.{alias}) == has(oldSelf.{alias}) && (!has(self.{alias}) || {rule})"
        rules.append({"rule": rule, "message": f"spec.{alias} is immutable; create a new {FINETUNE_JOB_KIND} instead"})
    return rules


def _explained(status: Schema, kind: str) -> Schema:
    """Add the meaning of each condition, and of each phase of a job, for `kubectl explain`."""
    properties = status["properties"]
    texts = [
        f"{entry.name}: {' '.join(f'{status} when: {text}' for status, text in entry.when.items())}"
        for entry in glossary.conditions(kind)
    ]
    properties["conditions"]["description"] += "\n" + "\n".join(texts)
    if kind == FINETUNE_JOB_KIND:
        phases = [f"{name}: {meaning}" for name, meaning in glossary.phases().items()]
        properties["phase"]["description"] += "\n" + "\n".join(phases)
    return status


def _convert(node: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    node = _dereference(node, definitions)
    if "anyOf" in node and "x-kubernetes-int-or-string" not in node:
        node = _unwrap_optional(node, definitions, path)
    if "prefixItems" in node or "oneOf" in node or "allOf" in node:
        raise ValueError(f"{path}: tuples and unions have no structural schema; model it another way")
    out = {key: node[key] for key in KEPT_KEYS if key in node and node[key] is not None}
    if "const" in node:
        out["enum"] = [node["const"]]
    for bound in ("Minimum", "Maximum"):
        limit = out.pop(f"exclusive{bound}", None)
        if limit is not None:
            out[bound.lower()] = limit
            out[f"exclusive{bound}"] = True
    if "properties" in node:
        required = node.get("required", [])
        out["properties"] = {k: _convert(v, definitions, f"{path}.{k}") for k, v in node["properties"].items()}
        for name, child in out["properties"].items():
            if name not in required and not _is_optional(node["properties"][name]) and _has_only_defaults(child):
                # `{}` makes the API server fill in the defaults below it, so that users see them in the object.
                child["default"] = {}
        if required:
            out["required"] = required
    if "items" in node:
        out["items"] = _convert(node["items"], definitions, f"{path}[]")
    if isinstance(extra := node.get("additionalProperties"), dict):
        out["additionalProperties"] = _convert(extra, definitions, f"{path}{{}}")
    return out


def _is_optional(node: Schema) -> bool:
    return {"type": "null"} in node.get("anyOf", [])


def _has_only_defaults(converted: Schema) -> bool:
    properties = converted.get("properties", {})
    return "required" not in converted and any("default" in p for p in properties.values())


def _dereference(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Replace `$ref` by its target; keys beside it (description, default) win."""
    if "$ref" not in node:
        return node
    target = definitions[node["$ref"].rsplit("/", 1)[-1]]
    siblings = {k: v for k, v in node.items() if k != "$ref"}
    return {**_dereference(target, definitions), **siblings}


def _unwrap_optional(node: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    """Convert `X | None` to X, because Kubernetes leaves absent fields out."""
    options = [o for o in node["anyOf"] if o.get("type") != "null"]
    if len(options) != 1:
        raise ValueError(f"{path}: a union of {len(options)} types has no structural schema")
    siblings = {k: v for k, v in node.items() if k not in ("anyOf", "default")}
    inner = {k: v for k, v in _dereference(options[0], definitions).items() if k != "default"}
    return {**inner, **siblings}


def _crd(
    *,
    kind: str,
    plural: str,
    short_names: list[str],
    description: str,
    spec: Schema,
    status: Schema,
    columns: list[Schema],
) -> Schema:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short_names,
                "categories": ["finetune"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": description,
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {
                                    "type": "object",
                                    "properties": {
                                        "name": {"type": "string", "maxLength": 50, "pattern": SERVICE_NAME_PATTERN}
                                    },
                                },
                                "spec": spec,
                                "status": status,
                            },
                        }
                    },
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, description: str = "", priority: int = 0) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    if priority:
        column["priority"] = priority
    return column


def _sentence(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0]
