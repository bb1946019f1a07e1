"""The pages that are generated when the site is built say everything, and the navigation leads to pages that exist."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_gateway.settings import Settings as GatewaySettings
from finetune_inference.config import Settings as ServerSettings
from finetune_operator.settings import Settings as OperatorSettings
from lab.site import pages

REPOSITORY = Path(__file__).resolve().parents[2]
MADE = {"commands", "settings", "metrics", "server-api", "request-fields", "reasons"}


class Loader(yaml.SafeLoader):
    """Leaves out what only mkdocs knows."""


Loader.add_multi_constructor("", lambda loader, suffix, node: None)


def entries(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [entry for part in (nav.values() if isinstance(nav, dict) else nav) for entry in entries(part)]


def test_every_entry_of_the_navigation_is_a_page() -> None:
    nav = entries(yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)["nav"])  # noqa: S506 - a SafeLoader
    made = {f"reference/{name}.md" for name in MADE}
    sources = [pages.ORIGINS.get(page, f"docs/{page}") for page in nav if page not in made]
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


def test_every_value_of_the_chart_is_on_the_page() -> None:
    page = (REPOSITORY / pages.COPIED["reference/chart-values.md"]).read_text()
    values = yaml.safe_load((REPOSITORY / "helm" / "finetune-operator" / "values.yaml").read_text())

    def missing(value: Any, path: str) -> list[str]:
        if f"| `{path}` |" in page:
            return []
        if isinstance(value, dict) and value:
            return [name for key, inner in value.items() for name in missing(inner, f"{path}.{key}" if path else key)]
        return [path]

    assert missing(values, "") == []


@pytest.mark.parametrize("settings", [OperatorSettings, GatewaySettings, ServerSettings])
def test_every_setting_says_what_it_is_for(settings: Any) -> None:
    rows = pages._settings_rows(settings).splitlines()
    assert len(rows) == len(settings.model_fields)
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_metric_has_a_name_a_type_and_a_meaning() -> None:
    page = pages.metrics_page()
    for name in ("finetune_operator_reconciles_total", "finetune_inference_requests_total", "finetune_inference_ready"):
        assert f"| `{name}` |" in page
    assert "|  |\n" not in page.replace("| gauge |  |", "")


def test_nothing_is_loaded_from_another_host() -> None:
    config = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)  # noqa: S506 - a SafeLoader
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & set(config)
    assert [css for css in config["extra_css"] if "://" in css] == []
