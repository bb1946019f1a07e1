"""The page about REST speaks of routes, states and codes that exist."""

import re
from pathlib import Path

from finetune_gateway import errors
from finetune_gateway.app import create_app
from finetune_gateway.routes import finetune
from finetune_gateway.schemas import State
from finetune_gateway.settings import Settings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "rest.md").read_text()
SOURCES = "".join(Path(str(module.__file__)).read_text() for module in (errors, finetune))


def test_every_call_exists_and_every_route_is_on_the_page() -> None:
    document = create_app(Settings()).openapi()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    spoken = {call.partition("?")[0] for call in re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", PAGE)}
    assert routes <= spoken
    assert spoken - routes == {"GET /docs", "GET /openapi.json"}


def test_every_state_is_on_the_page() -> None:
    assert all(f"`{state}`" in PAGE for state in State)


def test_every_code_on_the_page_is_one_of_the_gateways() -> None:
    rows = re.findall(r"^\| [\d, ]+ \| (.*?) \|", PAGE, re.MULTILINE)
    codes = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert codes
    assert all(f'"{code}"' in SOURCES for code in codes)
