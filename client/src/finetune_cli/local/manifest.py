"""The manifest: documents of one YAML file, checked by the API's own types, with every problem at once."""

import base64
import binascii
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from finetune_api.contract import API_VERSION, FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND
from finetune_api.sources import parse_source
from finetune_api.v1alpha1 import FinetuneJob, FinetuneJobSpec
from finetune_api.validation import problems_of
from finetune_cli.errors import ManifestError
from finetune_operator.kubernetes_types import Raw

KINDS: Final = (FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND, "ConfigMap", "Secret", "PersistentVolumeClaim")
"""Kinds that a manifest may hold."""
DEFAULT_NAMESPACE: Final = "default"
SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""Names that Kubernetes accepts. They become names of files here, so that an API server's rule is also this machine's safety."""
LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of namespaces."""
KEY: Final = re.compile(r"(?!\.\.?$)[-._a-zA-Z0-9]{1,253}")
"""Keys of ConfigMaps and Secrets."""


@dataclass(frozen=True)
class Manifest:
    """A FinetuneJob with the objects that it refers to."""

    job: Raw
    """The document, with its namespace."""
    others: tuple[Raw, ...]
    """ConfigMaps and InferenceServices."""
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    """Values of Secrets by name and key; never written to a file."""
    notes: tuple[str, ...] = ()
    """Differences between this machine and the cluster that the manifest expects."""

    @property
    def namespace(self) -> str:
        """Namespace of the job."""
        return str(self.job["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Name of the job."""
        return str(self.job["metadata"]["name"])

    @property
    def spec(self) -> FinetuneJobSpec:
        """The job's spec."""
        return FinetuneJob.model_validate(self.job).spec


def load_manifest(path: Path, data: Path | None = None, model: str | None = None) -> Manifest:
    """Read a manifest. Raises ManifestError with every problem.

    `data` is a folder with the files of ConfigMaps that are not in the manifest; `model` is the URI of a model that is used in
    place of spec.model.source.
    """
    documents = _read_documents(path)
    problems = [problem for document in documents for problem in _kind_problems(document)]
    jobs = [document for document in documents if document.get("kind") == FINETUNE_JOB_KIND]
    if len(jobs) != 1:
        problems.append(f"found {len(jobs)} documents of kind {FINETUNE_JOB_KIND}; expected one")
    if problems:
        raise ManifestError(str(path), problems)
    job = _with_model(jobs[0], model)
    job["metadata"] = {"namespace": DEFAULT_NAMESPACE, **(job.get("metadata") or {})}
    problems = job_problems(job)
    problems += [
        f"{d['kind']} {d['metadata']['name']}: metadata.namespace is {d['metadata']['namespace']}; expected the job's"
        for d in documents
        if d["metadata"].get("namespace", job["metadata"]["namespace"]) != job["metadata"]["namespace"]
    ]
    others = [_in_namespace(d, job["metadata"]["namespace"]) for d in documents if d["kind"] != FINETUNE_JOB_KIND]
    config_maps = {d["metadata"]["name"]: d for d in others if d["kind"] == "ConfigMap"}
    if not problems:
        found, missing = _find_config_maps(job, config_maps, data, path)
        others += found
        problems = [
            *missing,
            *_secret_problems(job, {d["metadata"]["name"] for d in others if d["kind"] == "Secret"}, path),
        ]
    if problems:
        raise ManifestError(str(path), problems)
    job, notes = adapted_to_machine(job)
    secrets = {d["metadata"]["name"]: _secret_values(d) for d in others if d["kind"] == "Secret"}
    kept = tuple(d for d in others if d["kind"] in ("ConfigMap", INFERENCE_SERVICE_KIND))
    return Manifest(job, kept, secrets, notes)


def job_problems(job: Raw) -> list[str]:
    """List everything that the API refuses about a FinetuneJob, by field."""
    try:
        FinetuneJob.model_validate(job)
    except ValidationError as error:
        return [str(problem) for problem in problems_of(error, document=job, model=FinetuneJob)]
    return []


def adapted_to_machine(job: Raw) -> tuple[Raw, tuple[str, ...]]:
    """Return the job as one machine can run it, and what is different."""
    spec, notes = dict(job["spec"]), []
    if spec.pop("queueName", None) is not None:
        notes.append("spec.queueName is ignored: there is no Kueue on this machine.")
    if spec.pop("ttlSecondsAfterFinished", None) is not None:
        notes.append("spec.ttlSecondsAfterFinished is ignored: the work directory is yours to delete.")
    replicas = (spec.get("serve") or {}).get("replicas", 1)
    if replicas != 1:
        spec["serve"] = {**spec["serve"], "replicas": 1}
        notes.append(f"spec.serve.replicas is 1 on this machine, not {replicas}.")
    return {**job, "spec": spec}, tuple(notes)


def changed_fields(old: Raw, new: Raw, prefix: str = "spec") -> list[str]:
    """List the fields in which two specs differ, with both values."""
    fields = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            fields += changed_fields(before, after, f"{prefix}.{key}")
        elif before != after:
            fields.append(f"{prefix}.{key} ({_shown(before)}, now {_shown(after)})")
    return fields


def _shown(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _read_documents(path: Path) -> list[Raw]:
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]
    except OSError as error:
        raise ManifestError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ManifestError(str(path), ["is not UTF-8 text"]) from None
    except yaml.YAMLError as error:
        raise ManifestError(str(path), [f"is not YAML: {' '.join(str(error).split())}"]) from None
    if strange := [d for d in documents if not isinstance(d, dict)]:
        raise ManifestError(
            str(path), [f"holds a {type(strange[0]).__name__}; expected objects with apiVersion and kind"]
        )
    found = [item for d in documents for item in (_items(d) if d.get("kind") == "List" else [d])]
    if strange := [d for d in found if not isinstance(d, dict)]:
        raise ManifestError(str(path), [f"holds a List with {type(strange[0]).__name__}; expected objects"])
    return found


def _items(document: Raw) -> list[Any]:
    items = document.get("items") or []
    return items if isinstance(items, list) else [items]


def _kind_problems(document: Raw) -> list[str]:
    kind = document.get("kind")
    if kind not in KINDS:
        return [f"kind is {kind!r}; expected one of {', '.join(KINDS)}{_did_you_mean(str(kind))}"]
    version = document.get("apiVersion")
    expected = API_VERSION if kind in (FINETUNE_JOB_KIND, INFERENCE_SERVICE_KIND) else "v1"
    problems = [] if version == expected else [f"apiVersion of {kind} is {version!r}; expected {expected!r}"]
    problems += _metadata_problems(kind, document.get("metadata"))
    for field_name in ("data", "stringData") if kind in ("ConfigMap", "Secret") else ():
        problems += [f"{kind}: {problem}" for problem in _data_problems(field_name, document.get(field_name))]
    if kind == "Secret" and not problems:
        try:
            _secret_values(document)
        except (binascii.Error, UnicodeDecodeError):
            problems.append(
                "Secret: data holds a value that is not base64 of UTF-8 text; use stringData for plain text"
            )
    return problems


def _metadata_problems(kind: str, metadata: Any) -> list[str]:
    if not isinstance(metadata, dict):
        return [f"{kind}: metadata is {type(metadata).__name__}; expected an object with a name"]
    problems = []
    name, namespace = metadata.get("name"), metadata.get("namespace", DEFAULT_NAMESPACE)
    if name is None:
        problems.append(f"{kind}: metadata.name is missing")
    elif not isinstance(name, str) or not SUBDOMAIN.fullmatch(name):
        problems.append(f"{kind}: metadata.name is {_shown(name)!r}; expected lower-case letters, digits, - and .")
    if not isinstance(namespace, str) or not LABEL.fullmatch(namespace):
        problems.append(
            f"{kind}: metadata.namespace is {_shown(namespace)!r}; expected lower-case letters, digits and -"
        )
    return problems


def _data_problems(field_name: str, data: Any) -> list[str]:
    if data is None:
        return []
    if not isinstance(data, dict):
        return [f"{field_name} is {type(data).__name__}; expected keys with text"]
    problems = [
        f"{field_name} has the key {_shown(key)!r}; expected letters, digits, -, _ and ."
        for key in data
        if not isinstance(key, str) or not KEY.fullmatch(key)
    ]
    return problems + [
        f"{field_name}.{key} is {type(value).__name__}; expected text (quote it)"
        for key, value in data.items()
        if not isinstance(value, str)
    ]


def _with_model(job: Raw, model: str | None) -> Raw:
    spec = job.get("spec")
    if model is None or not isinstance(spec, dict):
        return dict(job)
    named = spec.get("model")
    return {**job, "spec": {**spec, "model": {**(named if isinstance(named, dict) else {}), "source": model}}}


def _in_namespace(document: Raw, namespace: str) -> Raw:
    return {**document, "metadata": {"namespace": namespace, **document["metadata"]}}


def row_sources(spec: FinetuneJobSpec) -> list[tuple[str, str]]:
    """Return field and URI of each set of rows that is elsewhere."""
    sources: list[tuple[str, str | None]] = [("spec.dataset.source", spec.dataset.source)]
    sources += [(f"spec.dataset.sources[{i}].source", part.source) for i, part in enumerate(spec.dataset.sources or ())]
    sources.append(("spec.evaluation.source", spec.evaluation.source if spec.evaluation else None))
    return [(name, uri) for name, uri in sources if uri is not None]


def _find_config_maps(job: Raw, known: Mapping[str, Raw], data: Path | None, path: Path) -> tuple[list[Raw], list[str]]:
    """Make ConfigMaps of files in `data`, and what is missing."""
    made: dict[str, Raw] = {}
    problems = []
    for name, uri in row_sources(FinetuneJob.model_validate(job).spec):
        source = parse_source(uri)
        if source.scheme != "configmap":
            continue
        if source.name in known:
            keys = list(known[source.name].get("data") or {})
            if source.path not in keys:
                has = ", ".join(keys) or "no keys"
                problems.append(f"{name}: ConfigMap {source.name} has no key {source.path}; it has {has}")
            continue
        candidates = [Path(source.name) / source.path, Path(f"{source.name}.{source.path}")]
        file = next((data / c for c in candidates if (data / c).is_file()), None) if data is not None else None
        if file is None:
            where = f"{data} holds neither" if data is not None else "give --data DIR with"
            problems.append(
                f"{name}: ConfigMap {source.name} is not in {path.name}; add it as a document, or "
                f"{where} {candidates[0]} {'nor' if data is not None else 'or'} {candidates[1]}"
            )
            continue
        metadata = {"name": source.name, "namespace": job["metadata"]["namespace"]}
        config_map = made.setdefault(
            source.name, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}
        )
        config_map["data"][source.path] = file.read_text(encoding="utf-8")
    return list(made.values()), problems


def _secret_problems(job: Raw, known: set[str], path: Path) -> list[str]:
    """List Secrets without which a pod would not start; those of datasets and trackers are optional."""
    reference = FinetuneJob.model_validate(job).spec.model.secret_ref
    if reference is None or reference.name in known:
        return []
    return [
        f"spec.model.secretRef: Secret {reference.name} is not in {path.name}; add it as a document with stringData"
    ]


def _secret_values(document: Raw) -> dict[str, str]:
    encoded = {key: base64.b64decode(value).decode() for key, value in (document.get("data") or {}).items()}
    return encoded | {key: str(value) for key, value in (document.get("stringData") or {}).items()}


def _did_you_mean(kind: str) -> str:
    close = difflib.get_close_matches(kind, KINDS, n=1)
    return f"; did you mean {close[0]}?" if close else ""
