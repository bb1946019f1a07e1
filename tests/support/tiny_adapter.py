"""LoRA adapters for the tiny model, written as the trainer commits them: peft's files and a manifest over them."""

import shutil
from pathlib import Path
from typing import Any

from finetune_api.artifacts import MANIFEST_FILE, FileEntry, Manifest, digest_of, sha256_of, to_manifest_bytes


def make_tiny_adapter(directory: Path, base: Path, *, seed: int, scale: float = 0.2, **lora: Any) -> str:
    """Write an adapter whose weights come from `seed` into `directory`; returns its digest. Scale 0 has no effect."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **lora}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn_like(parameter) * scale)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    return commit(directory)


def commit(directory: Path, kind: str = "adapter") -> str:
    """Write the manifest over all files that are there now; returns the folder's digest."""
    manifest_path = directory / MANIFEST_FILE
    manifest_path.unlink(missing_ok=True)
    files = [
        FileEntry(path=path.name, size=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(directory.iterdir())
    ]
    raw = to_manifest_bytes(Manifest(kind=kind, step=1, files=files))
    manifest_path.write_bytes(raw)
    return digest_of(raw)


def copied(source: Path, target: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(source, target)
    return target
