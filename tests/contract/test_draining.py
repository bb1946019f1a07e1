"""What a pod is told about its end is what the server understands, and fits into what the kubelet grants."""

import pytest

from finetune_inference.config import Settings
from finetune_operator.resources.serving import build_server_pod_spec
from support.objects.operator_objects import SETTINGS, a_service

LAST_STEP_SECONDS = 5
"""That a server waits for its engine after the last answer (`InferenceService.close`)."""


def test_a_pod_ends_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = build_server_pod_spec(a_service(), SETTINGS)
    for variable in pod["containers"][0]["env"]:
        if "value" in variable:
            monkeypatch.setenv(variable["name"], variable["value"])
    settings, by_hand = Settings(), Settings.model_construct()
    assert settings.drain_delay_seconds > by_hand.drain_delay_seconds, "proxies are slower than people"
    assert (
        settings.drain_delay_seconds + settings.drain_seconds + LAST_STEP_SECONDS < pod["terminationGracePeriodSeconds"]
    )
