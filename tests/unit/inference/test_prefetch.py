"""Reading ahead is a hint: it counts what it asked for and never fails."""

from pathlib import Path

from finetune_inference.backends.common.prefetch import prefetch


def test_weights_are_read_ahead_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"a" * 1000)
    (tmp_path / "model-2.safetensors").write_bytes(b"b" * 10)
    (tmp_path / "pytorch_model.bin").write_bytes(b"c" * 9999)
    assert prefetch(tmp_path) == 1010


def test_what_is_not_there_is_somebody_elses_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    assert prefetch(tmp_path) == 0
    assert prefetch(tmp_path / "nothing") == 0
