"""The gateway finds the API server of its cluster and holds no credential."""

from pathlib import Path

import pytest

from finetune_gateway.app import create_app
from finetune_gateway.settings import Settings


@pytest.mark.parametrize(
    ("host", "url"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_api_server_is_where_every_pod_is_told(host: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert Settings().api_url == url


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_GATEWAY_DEFAULT_NAMESPACE", "ml")
    assert Settings().default_namespace == "ml"


def test_a_missing_certificate_authority_ends_the_start() -> None:
    with pytest.raises(OSError, match="No such file"):
        create_app(Settings(ca_file=Path("/nowhere/ca.crt")))
