"""Credentials and identities that pods and servers are given: what is in the environment, and what a hash or token covers."""

import hashlib
import hmac
from typing import Any

import pytest

from finetune_api.v1alpha1.common import LocalSecretReference
from finetune_operator.reconcile.service.served_versions import probed_hash, promotion_token
from finetune_operator.resources.pods import dataset_env
from finetune_operator.resources.serving import server_url
from finetune_operator.settings import Settings
from support.objects.operator_objects import UID, a_service

SECRET = LocalSecretReference(name="login", key="token")
SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]
PRIVATE = SETTINGS.model_copy(update={"allow_private_sources": True})
MOUNTED_ROWS = "pvc://rows/train.jsonl"


def names(
    *sources: str, settings: Settings = SETTINGS, secret: LocalSecretReference | None = None, **kw: Any
) -> set[str]:
    return {entry["name"] for entry in dataset_env(sources, secret, settings, **kw)}


@pytest.mark.parametrize("source", ["hf://org/rows", "https://example.org/rows.jsonl"])
def test_a_download_gets_the_token(source: str) -> None:
    env = dataset_env([source, MOUNTED_ROWS], SECRET, SETTINGS)
    (token,) = (entry for entry in env if "valueFrom" in entry)
    assert token["name"] == "FINETUNE_DATASET_TOKEN"
    assert token["valueFrom"] == {"secretKeyRef": {"name": "login", "key": "token", "optional": True}}


def test_rows_on_a_mount_get_nothing() -> None:
    assert names(MOUNTED_ROWS, secret=SECRET) == set()
    assert names(secret=SECRET) == set()
    assert names(MOUNTED_ROWS, secret=SECRET, settings=PRIVATE) == set()


def test_private_addresses_are_allowed_to_downloads_and_trackers_if_the_settings_say_so() -> None:
    variable = "FINETUNE_ALLOW_PRIVATE_SOURCES"
    assert variable in names("https://example.org/rows.jsonl", settings=PRIVATE)
    assert variable in names(MOUNTED_ROWS, settings=PRIVATE, tracked=True)
    assert variable not in names("https://example.org/rows.jsonl")
    assert variable not in names(MOUNTED_ROWS, tracked=True)


def test_an_object_store_gets_its_own_keys_and_no_token() -> None:
    found = names("s3://bucket/rows.jsonl", secret=SECRET)
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL"} < found
    assert "FINETUNE_DATASET_TOKEN" not in found


def a_service_with(**adapter: Any) -> Any:
    service = a_service(adapters=[{"name": "tone", "source": "pvc://c/tone", **adapter}])
    return service, service.spec.adapters[0]


def test_a_verdict_outlives_new_metrics_but_no_other_version() -> None:
    service, adapter = a_service_with()
    _, measured = a_service_with(metrics=[{"name": "eval_loss", "value": "0.5"}])
    _, other = a_service_with(digest=f"sha256:{'a' * 64}")
    assert probed_hash(service, adapter, "tone") == probed_hash(service, measured, "tone")
    assert probed_hash(service, adapter, "tone") != probed_hash(service, other, "tone")
    assert probed_hash(service, adapter, "tone") != probed_hash(service, adapter, "tone@1")


def test_a_promotion_token_is_for_one_service_generation_and_version() -> None:
    service, adapter = a_service_with(digest=f"sha256:{'a' * 64}")
    settings = SETTINGS.model_copy(update={"promotion_key": Settings(promotion_key="k").promotion_key})
    purpose = f"{UID}/1/tone@{'a' * 12}"
    assert promotion_token(service, adapter, settings) == hmac.new(b"k", purpose.encode(), hashlib.sha256).hexdigest()
    assert promotion_token(service, adapter, SETTINGS.model_copy(update={"promotion_key": None})) is None


@pytest.mark.parametrize(
    ("address", "template", "url"),
    [
        ("10.0.0.1", None, "http://10.0.0.1:8000"),
        ("fd00::1", None, "http://[fd00::1]:8000"),
        ("10.0.0.1", "http://127.0.0.1:1/{namespace}/{pod}", "http://127.0.0.1:1/ml/s0"),
    ],
)
def test_a_server_is_reached_by_its_pods_address_or_as_the_settings_say(
    address: str, template: str | None, url: str
) -> None:
    settings = SETTINGS.model_copy(update={"server_url_template": template})
    assert server_url(address, "s0", a_service(), settings) == url
