"""An adapter of another base model is refused, even if every shape fits; adapters of older releases stay readable."""

import json
import shutil
from pathlib import Path

import pytest

from finetune_api.artifacts import MANIFEST_FILE, Manifest, to_manifest_bytes
from finetune_api.serving import ServedAdapter, ServedModel, ServingConfig
from finetune_inference.adapters.verification import AdapterRefusedError, Limits, verify
from finetune_inference.config import Settings
from finetune_inference.engine.interface import ModelLoadError
from finetune_inference.inference import InferenceService
from finetune_model import base_digest
from finetune_model.base_digest import BaseIdentity, digest_of_weights, read_identity
from finetune_trainer.training import FinetuningPipeline
from lab.fixtures.tiny_adapter import copied
from lab.fixtures.tiny_model import make_tiny_model
from lab.fixtures.training_runs import a_training_config

pytestmark = [pytest.mark.model, pytest.mark.engine]

LIMITS = Limits(256, 1 << 30)
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def trained(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipeline = FinetuningPipeline(a_training_config(models / "base", tmp_path_factory.mktemp("trained")))
    pipeline.run()
    return pipeline.store.adapter


def with_record(adapter: Path, target: Path, **fields: str | None) -> Path:
    """Copy an adapter, with another record of its base model in the manifest."""
    path = copied(adapter, target) / MANIFEST_FILE
    path.write_bytes(to_manifest_bytes(Manifest.model_validate_json(path.read_bytes()).model_copy(update=fields)))
    return target


def service(base: Path, adapter: Path, *, merge: bool = False) -> InferenceService:
    served = ServedAdapter(name="tuned", path=str(adapter))
    config = ServingConfig(model=ServedModel(name="base", path=str(base)), adapters=[served], merge_adapter=merge)
    return InferenceService(config, Settings(threads=1))


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_of_another_base_with_the_same_shapes_is_refused(
    trained: Path, tmp_path: Path, *, merge: bool
) -> None:
    other = service(make_tiny_model(tmp_path / "other", seed=5), trained, merge=merge)
    expected = (
        "was trained on pvc://models/tiny \\(sha256:.*; this server has .*/other \\(sha256:.*finetune_trainer adopt "
    )
    if merge:
        with pytest.raises(ModelLoadError, match=expected):
            other.load()
    else:
        other.load()
        assert [model.name for model in other.models()] == ["base"]
        assert "was trained on pvc://models/tiny (sha256:" in other.refused["tuned"]
        assert f"finetune_trainer adopt {trained} --model {tmp_path / 'other'}" in other.refused["tuned"]
    other.close()


def test_a_copy_of_the_base_in_another_place_is_the_same_base(models: Path, trained: Path, tmp_path: Path) -> None:
    manifest = Manifest.model_validate_json((trained / MANIFEST_FILE).read_bytes())
    assert manifest.base_digest == manifest.base_revision == digest_of_weights(models / "base")
    same = service(shutil.copytree(models / "base", tmp_path / "copy"), trained)
    same.load()
    assert same.refused == {}
    same.close()


@pytest.mark.parametrize(
    ("digest", "revision", "accepted"),
    [
        (None, None, True),  # of a release before these fields, or written by hand
        (None, "sha256:" + "0" * 64, False),
        (None, COMMIT, True),  # of a hub model whose digest was not recorded yet, served from a folder
        ("sha256:" + "0" * 64, COMMIT, False),
        ("sampled-sha256:" + "0" * 64, None, False),
    ],
)
def test_what_older_manifests_record_is_compared_as_far_as_possible(
    models: Path, trained: Path, tmp_path: Path, digest: str | None, revision: str | None, *, accepted: bool
) -> None:
    folder = with_record(trained, tmp_path / "a", base_digest=digest, base_revision=revision)
    base = read_identity(str(models / "base"))
    if accepted:
        assert verify(ServedAdapter(name="a", path=str(folder)), LIMITS, base)
    else:
        with pytest.raises(AdapterRefusedError, match="was trained on"):
            verify(ServedAdapter(name="a", path=str(folder)), LIMITS, base)


def test_commits_of_a_hub_model_are_compared_and_a_quantized_one_is_not(trained: Path, tmp_path: Path) -> None:
    folder = with_record(trained, tmp_path / "a", base_digest=None, base_revision=COMMIT)
    entry = ServedAdapter(name="a", path=str(folder))
    for commit, quantized in ((COMMIT, False), ("d" * 40, True)):
        assert verify(entry, LIMITS, BaseIdentity("org/name", "sha256:1", commit, quantized))
    with pytest.raises(AdapterRefusedError, match=r"this server has org/name \(dddd"):
        verify(entry, LIMITS, BaseIdentity("org/name", "sha256:1", "d" * 40, is_quantized=False))


def test_a_model_is_hashed_once_until_a_file_changes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(models / "base", tmp_path / "base")
    before = digest_of_weights(folder)
    hashed = base_digest._digest.cache_info().misses
    assert digest_of_weights(folder) == before
    assert base_digest._digest.cache_info().misses == hashed
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 1}))
    assert digest_of_weights(folder) != before
    monkeypatch.setattr(base_digest, "FULL_DIGEST_BYTES", 1)
    config.touch()
    assert digest_of_weights(folder).startswith("sampled-sha256:")
