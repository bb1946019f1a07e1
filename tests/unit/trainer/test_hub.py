"""Models that are not a folder: what a hub's refusals mean to a user."""

import errno
from collections.abc import Callable

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from finetune_api.reasons import Reason
from finetune_api.training import ModelConfig
from finetune_trainer.errors import TrainingError
from finetune_trainer.model import base_model


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/org/name"))


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        (lambda: errors.GatedRepoError("gated", response=response(403)), Reason.MODEL_ACCESS_DENIED, False),
        (lambda: errors.RepositoryNotFoundError("none", response=response(401)), Reason.MODEL_NOT_FOUND, False),
        (lambda: errors.RevisionNotFoundError("none", response=response(404)), Reason.MODEL_NOT_FOUND, False),
        (lambda: errors.HfHubHTTPError("denied", response=response(403)), Reason.MODEL_ACCESS_DENIED, False),
        (lambda: errors.HfHubHTTPError("down", response=response(503)), Reason.MODEL_NOT_FOUND, True),
        (lambda: errors.LocalEntryNotFoundError("offline"), Reason.MODEL_NOT_FOUND, True),
        (lambda: errors.HFValidationError("bad name"), Reason.MODEL_NOT_FOUND, False),
        (lambda: RuntimeError("Illegal header value b'Bearer hunter2'"), Reason.MODEL_NOT_FOUND, True),
        (lambda: httpx.ConnectError("refused"), Reason.MODEL_NOT_FOUND, True),
        (lambda: TrainingError(Reason.MODEL_INVALID, "no weights"), Reason.MODEL_INVALID, False),
    ],
)
def test_a_refusal_of_the_hub_becomes_a_reason(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], reason: Reason, retryable: bool
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(TrainingError) as caught:
        base_model.locate_files(ModelConfig(path="org/name", revision="main"))
    assert (caught.value.reason, caught.value.retryable) == (reason, retryable)
    assert "hunter2" not in caught.value.message


def test_a_full_volume_is_not_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_args: object, **_kwargs: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fill)
    with pytest.raises(
        TrainingError, match="The scratch volume, or its node's disk, is full with model org/name"
    ) as caught:
        base_model.locate_files(ModelConfig(path="org/name", revision="main"))
    assert (caught.value.reason, caught.value.retryable) == (Reason.STORAGE_FULL, True)
