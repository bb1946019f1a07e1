"""Settings, rights, health and logs: what surrounds the reconcilers."""

import json
import logging
from typing import Any

import pytest

from finetune_api.json_logs import JsonFormatter
from finetune_operator.handlers.keys import Key, keys_of
from finetune_operator.permissions import rules
from finetune_operator.process.health import STALE_SECONDS, Health
from finetune_operator.reconcile.projections import is_settled
from finetune_operator.settings import Settings
from support.objects.clock import Clock


def test_namespaces_are_names_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().namespaces == frozenset()
    monkeypatch.setenv("FINETUNE_OPERATOR_NAMESPACES", "ml, research ,")
    assert Settings().namespaces == {"ml", "research"}


def test_settings_come_from_the_environment_and_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_OPERATOR_TOLERATIONS", '[{"key": "gpu", "operator": "Exists"}]')
    monkeypatch.setenv("FINETUNE_OPERATOR_NODE_SELECTOR", '{"pool": "gpu"}')
    monkeypatch.setenv("FINETUNE_BROKER_URL", "redis://:pa55@redis:6379/0")
    settings = Settings()
    assert settings.tolerations == ({"key": "gpu", "operator": "Exists"},)
    assert settings.node_selector == {"pool": "gpu"}
    assert settings.broker_url is not None
    assert "pa55" not in repr(settings)


def test_an_empty_key_of_promotions_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_OPERATOR_PROMOTION_KEY", "")
    assert Settings().promotion_key is None, "anybody could make tokens with it"
    monkeypatch.setenv("FINETUNE_OPERATOR_PROMOTION_KEY", "a key")
    settings = Settings()
    assert settings.promotion_key is not None
    assert settings.promotion_key.get_secret_value() == "a key"
    assert "a key" not in repr(settings)


def test_the_rights_hold_nothing_dangerous() -> None:
    granted = {(rule.group, rule.resource): set(rule.verbs) for rule in rules()}
    for (group, resource), verbs in granted.items():
        assert "*" not in (group, resource, *verbs)
        assert resource.split("/")[0] not in ("secrets", "nodes", "serviceaccounts", "roles", "rolebindings")
        assert not verbs & {"impersonate", "escalate", "bind", "deletecollection", "update"}
    # `patch` is for one annotation of server pods; the chart's admission policy sees to that.
    assert granted["", "pods"] == {"list", "watch", "patch"}
    assert all(rule.why for rule in rules())


def test_an_outage_makes_unready_and_never_unhealthy() -> None:
    clock = Clock()
    health = Health(clock)
    assert health.unready_reason() == "the first resync is not complete"
    health.watch_started()
    health.resync_succeeded()
    assert (health.problem(), health.unready_reason()) == (None, None)
    for _ in range(100):
        clock.now += 10
        health.resync_failed(is_outage=True)
    assert health.problem() is None
    assert health.unready_reason() == "the API server does not answer"


def test_a_refusal_that_lasts_a_stuck_loop_and_a_lost_watch_are_unhealthy() -> None:
    clock = Clock()
    health = Health(clock)
    health.watch_started()
    health.resync_succeeded()
    clock.now += STALE_SECONDS + 1
    assert health.problem() == "the resync is stuck"
    health.resync_failed(is_outage=False)
    assert health.problem() == "the API server refuses the operator"
    health.resync_succeeded()
    health.watch_lost()
    assert (health.problem(), health.unready_reason()) == (None, "the watch is not running")
    for _ in range(10):
        clock.now += 10
        health.watch_started()
        health.watch_lost()
        health.resync_succeeded()
    assert health.problem() == "the watch does not start"
    health.watch_started()
    clock.now += 30
    assert health.problem() is None
    health.watch_lost()
    assert health.problem() is None


def test_a_log_line_is_one_json_object_with_its_fields() -> None:
    error = ValueError("boom\nline two")
    info = (ValueError, error, None)
    record = logging.LogRecord("finetune_operator.x", logging.ERROR, "f", 1, "it %s", ("failed",), info)
    record.object = "ml/tone"
    line = JsonFormatter().format(record)
    entry = json.loads(line)
    assert "\n" not in line
    assert (entry["level"], entry["message"], entry["object"]) == ("error", "it failed", "ml/tone")
    assert "boom" in entry["exception"]


def test_children_lead_to_their_owners() -> None:
    labels = {"finetune.dev/job-name": "tone", "finetune.dev/service-name": "chat"}
    assert keys_of({"namespace": "ml", "labels": labels}) == [
        Key("FinetuneJob", "ml", "tone"),
        Key("InferenceService", "ml", "chat"),
    ]
    assert keys_of({"namespace": "ml"}) == []


@pytest.mark.parametrize(
    ("status", "spec", "settled"),
    [
        ({}, {}, False),
        ({"phase": "Running", "observedGeneration": 1}, {}, False),
        ({"phase": "Succeeded", "observedGeneration": 1}, {}, True),
        ({"phase": "Succeeded", "observedGeneration": 0}, {}, False),
        ({"phase": "Failed", "observedGeneration": 1}, {"ttlSecondsAfterFinished": 5}, False),
        ("garbage", {}, False),
    ],
)
def test_finished_jobs_are_not_looked_at_again(status: Any, spec: Any, settled: bool) -> None:
    assert is_settled({"metadata": {"generation": 1}, "spec": spec, "status": status}) is settled
