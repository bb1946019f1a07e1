"""Pages of the site that come from elsewhere: from files of the repository, or from the code."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic_settings import BaseSettings

REPOSITORY: Final = Path(__file__).resolve().parents[2]

COPIED: Final = {
    "reference/finetunejob.md": "crds/docs/finetunejob.md",
    "reference/inferenceservice.md": "crds/docs/inferenceservice.md",
    "reference/samples.md": "crds/samples/README.md",
    "reference/chart.md": "helm/finetune-operator/README.md",
    "reference/chart-values.md": "helm/finetune-operator/VALUES.md",
    "explanation/decisions.md": "docs/decisions/README.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/local-kubernetes.md": "lab/kubernetes/README.md",
    "project/security.md": "SECURITY.md",
    "project/changelog.md": "CHANGELOG.md",
}
"""Pages whose source stands beside what it describes: one source, two places."""

ORIGINS: Final = dict(COPIED)
"""Path in the repository of each page that is not in docs/."""

SITE_PATHS: Final = {
    **{source: page for page, source in COPIED.items()},
    "README.md": "index.md",
    "crds/docs": "reference/finetunejob.md",
    "crds/samples": "reference/samples.md",
    "helm/finetune-operator": "reference/chart.md",
    "lab/kubernetes": "project/local-kubernetes.md",
    "docs/decisions": "explanation/decisions.md",
}
"""Page of the site for paths of the repository."""

COMMANDS: Final = (
    "finetune_cli run",
    "finetune_trainer",
    "finetune_trainer validate",
    "finetune_trainer train",
    "finetune_trainer inspect",
    "finetune_inference",
    "lab.kubernetes",
    "lab.figures",
    "lab.bench.training.bench",
    "lab.bench.serving.bench",
    "lab.kill.run",
    "demo.run",
    "demo.chat",
)
"""Modules, with a subcommand where there is one, whose --help is shown."""


@dataclass(frozen=True)
class GeneratedPage:
    """One page that has no file in docs/."""

    path: str
    """Path below docs/, as the navigation names it."""
    text: str
    """Markdown."""


def generated() -> list[GeneratedPage]:
    """Return all generated pages."""
    made = [GeneratedPage(page, (REPOSITORY / source).read_text()) for page, source in COPIED.items()]
    made += [
        GeneratedPage("reference/commands.md", command_lines()),
        GeneratedPage("reference/settings.md", settings_page()),
        GeneratedPage("reference/metrics.md", metrics_page()),
        GeneratedPage("reference/server-api.md", server_api()),
        GeneratedPage("reference/request-fields.md", request_fields()),
    ]
    return made


def command_lines() -> str:
    """Return the --help of every command."""
    names = [name for name in COMMANDS if _is_module(name.split()[0])]
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(_help, names))
    parts = [f"## `{_shown(name)}`\n\n```text\n{text}\n```\n" for name, text in zip(names, texts, strict=True)]
    return (
        "# Command lines\n\nThe commands are in the project's environment (`.venv/bin`) and in the images. Operator and gateway "
        "(`python -m finetune_operator`, `python -m finetune_gateway`) have no options: they read [settings](settings.md) from "
        "the environment. `make help` lists the commands of a checkout.\n\n" + "\n".join(parts)
    )


def _is_module(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name.partition(".")[0]) is not None


def _shown(name: str) -> str:
    return name.replace("finetune_cli", "finetune") if name.startswith("finetune_cli") else f"python -m {name}"


def _help(name: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", *name.split(), "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return done.stdout.strip()


def settings_page() -> str:
    """Return all settings of operator, gateway, server and trainer by their environment variable."""
    from finetune_gateway.settings import Settings as GatewaySettings
    from finetune_inference.config import Settings as ServerSettings
    from finetune_operator.settings import Settings as OperatorSettings
    from finetune_trainer.config import TrainerSettings

    parts = [
        "# Settings\n\nEnvironment variables, read once at start. The chart sets those of the pods it installs; "
        "`operator.env` and `gateway.env` are for the rest.\n"
    ]
    sections: tuple[tuple[str, type[BaseSettings]], ...] = (
        ("Operator", OperatorSettings),
        ("Gateway", GatewaySettings),
        ("Server", ServerSettings),
        ("Trainer", TrainerSettings),
    )
    for title, settings in sections:
        parts.append(f"## {title}\n\n| variable | default | meaning |\n|---|---|---|\n{_settings_rows(settings)}\n")
    return "\n".join(parts)


def _settings_rows(settings: type[BaseSettings]) -> str:
    documented = attribute_docstrings(settings)
    rows = []
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        chosen = getattr(alias, "choices", [alias])[0] if alias else None
        variable = str(chosen) if chosen else f"{settings.model_config.get('env_prefix', '')}{name}".upper()
        default = "" if field.default_factory else _plain(field.default)
        meaning = (field.description or documented.get(name, "")).replace("|", "\\|")
        rows.append(f"| `{variable}` | {default} | {' '.join(meaning.split())} |")
    return "\n".join(rows)


def _plain(default: Any) -> str:
    if default is None or default in ((), frozenset(), {}):
        return ""
    return f"`{default}`" if "PydanticUndefined" not in repr(default) else "**required**"


def attribute_docstrings(cls: type[Any]) -> dict[str, str]:
    """Return the string below each attribute of a class."""
    body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for member, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(member, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(member.target)] = str(below.value.value)
    return found


def metrics_page() -> str:
    """Return the Prometheus metrics of the operator and of a server, from the objects that hold them."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics import MetricWrapperBase

    from finetune_inference.api.metrics import Metrics
    from finetune_operator.process import metrics as operator_metrics

    operators = [value for value in vars(operator_metrics).values() if isinstance(value, MetricWrapperBase)]
    server: CollectorRegistry = Metrics(_NoService()).registry  # type: ignore[arg-type]
    servers = [c for c in server._collector_to_names if isinstance(c, MetricWrapperBase)]
    parts = [
        "# Metrics\n\nPrometheus metrics at `/metrics`: of the operator on port 8080, of each server on the port of its API. "
        "[Monitor and alert](../how-to/monitor.md) has queries.\n"
    ]
    for title, metrics in (("Operator", operators), ("Server", servers)):
        parts.append(
            f"## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n{_metric_rows(metrics)}\n"
        )
    return "\n".join(parts)


class _NoService:
    """Stands for a server whose figures nobody reads."""

    def __getattr__(self, name: str) -> int:
        return 0


def _metric_rows(metrics: list[Any]) -> str:
    rows = []
    for metric in metrics:
        family = next(iter(metric.describe()))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows)


def server_api() -> str:
    """Return the routes of a server with what each does."""
    paths = server_openapi()["paths"]
    rows = [
        f"| `{method.upper()} {path}` | {_first_paragraph(operation)} |"
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]
    return (
        "# Server API\n\nThe endpoint of an InferenceService speaks OpenAI's API, so the official `openai` client works with "
        "`base_url=http://NAME.NAMESPACE.svc.cluster.local/v1` and any `api_key`. `GET /openapi.json` has every field; "
        "[Request fields](request-fields.md) says which fields of other servers are served, refused or ignored.\n\n"
        "Each answer names its weights: the header `X-Base-Model` has the base model's name, `X-Adapter-Digest` the digest of the "
        "adapter's manifest (absent for the base model), and `system_fingerprint` ends with that digest, or with `base`.\n\n"
        "| call | does |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def request_fields() -> str:
    """Return the decision about each field of a request."""
    from finetune_inference.api.request_fields import BOTH, FIELDS, ROUTES

    decided = {id(field): field for fields in FIELDS.values() for field in fields.values()}.values()
    parts = [
        "# Request fields\n\nFields that clients of OpenAI, vLLM, TGI, llama.cpp and Ollama send to `/v1/chat/completions` and "
        "`/v1/completions`. A refused field is a 400 that names it, except with a value that changes no answer. A field that "
        "is not listed is unknown and refused, with the field that was probably meant.\n"
    ]
    for decision in ("served", "refused", "ignored"):
        parts.append(f"## {decision.capitalize()}\n\n| field | of | route | {_COLUMN[decision]} |\n|---|---|---|---|")
        parts += [
            f"| `{field.name}` | {field.origin} | {'both' if field.routes == BOTH else f'`{ROUTES[field.routes[0]]}`'} | "
            f"{_reason(field)} |"
            for field in decided
            if field.decision == decision
        ]
        parts.append("")
    return "\n".join(parts)


_COLUMN: Final = {"served": "meaning", "refused": "reason", "ignored": "why it changes no answer"}


def _reason(field: Any) -> str:
    accepted = ", ".join(f"`{json.dumps(value)}`" for value in field.neutral)
    return field.reason.replace("|", "\\|") + (f" (accepted: {accepted})" if accepted else "")


def server_openapi() -> dict[str, Any]:
    """Return the OpenAPI document of a server; no model is loaded for it."""
    from finetune_inference.api.app import create_app
    from finetune_inference.config import standalone_config

    return create_app(standalone_config("no-model")).openapi()


def gateway_openapi() -> dict[str, Any]:
    """Return the OpenAPI document of the gateway."""
    from finetune_gateway.app import create_app
    from finetune_gateway.settings import Settings

    return create_app(Settings()).openapi()


def _first_paragraph(operation: dict[str, Any]) -> str:
    text = operation.get("description") or operation.get("summary", "")
    return re.split(r"\n\s*\n", text)[0].replace("\n", " ").replace("|", "\\|")
