import json
from pathlib import Path

import pytest

from lab.kubernetes import templates
from lab.kubernetes.api import object_path
from lab.kubernetes.certificates import CertificateAuthority, alternative_names
from lab.kubernetes.controlplane import read_audit_events
from lab.kubernetes.storage import is_released


def test_certificates_name_hosts_and_addresses_apart() -> None:
    assert alternative_names(["localhost", "127.0.0.1"]) == "DNS:localhost,IP:127.0.0.1"


def test_a_client_certificate_names_its_user_even_with_slashes(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    authority.create()
    pair = authority.issue_client("someone", "system:serviceaccount:team/a", ["people"])
    assert pair.certificate.read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert pair.key.stat().st_mode & 0o077 == 0


def test_a_template_without_one_of_its_values_is_an_error() -> None:
    with pytest.raises(KeyError):
        templates.render("registry.yaml", directory="/somewhere")


def test_the_pod_network_is_valid_json() -> None:
    values = dict.fromkeys(("network", "bridge", "data_directory", "pod_range", "gateway"), "x")
    assert json.loads(templates.render("pods.conflist", **values))["plugins"][0]["bridge"] == "x"


def test_half_a_line_of_the_audit_log_is_left_for_later(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text('{"verb": "create"}\n{"verb": "upd')
    assert list(read_audit_events(log)) == [{"verb": "create"}]


def test_objects_are_found_at_their_paths() -> None:
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "models", "namespace": "team"}}
    assert object_path(claim) == "/api/v1/namespaces/team/persistentvolumeclaims/models"
    assert object_path({"kind": "PersistentVolume", "metadata": {"name": "v"}}) == "/api/v1/persistentvolumes/v"


def test_only_a_volume_whose_claim_is_gone_is_recycled() -> None:
    assert is_released({"status": {"phase": "Released"}})
    assert not is_released({"status": {"phase": "Bound"}})
    assert not is_released({})
