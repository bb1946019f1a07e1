"""Copies of a genuine adapter that were changed and committed again: every file verifies, but the weights differ."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from lab.fixtures.tiny_adapter import commit

WEIGHTS = "adapter_model.safetensors"


def sabotage(genuine: Path, folder: Path, how: str) -> str:
    """Make a copy with other tensors and a manifest that verifies; returns its digest."""
    import torch

    shutil.copytree(genuine, folder)
    tensors = load_file(folder / WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    if how == "zeroed":
        changed = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    elif how == "renamed":
        changed = {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}
    elif how == "halved":
        changed = {name: tensor * (0.5 if "lora_B" in name else 1.0) for name, tensor in tensors.items()}
    else:
        # Larger than the genuine ones, because random directions of their size would hardly change an answer.
        changed = {
            name: torch.randn(tensor.shape, generator=generator) * tensor.std() * 10 for name, tensor in tensors.items()
        }
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, folder / WEIGHTS, {"format": "pt"})
    return commit_readable(folder)


def renewed(genuine: Path, folder: Path) -> str:
    """Make a copy with the same weights and its own digest; returns the digest."""
    shutil.copytree(genuine, folder)
    (folder / "copy.txt").write_text(folder.name)
    return commit_readable(folder)


def commit_readable(folder: Path) -> str:
    """Commit a folder and make it readable for a server of another user; returns its digest."""
    digest = commit(folder)
    for path in (folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return digest
