"""Verification of adapter folders: all checks that need neither a model nor torch.

An adapter arrives on a volume to which other jobs write. So the folder must be complete (`manifest.json`), be the requested
version (digest), hold its weights as safetensors, and its `adapter_config.json` must configure plain LoRA alone.
`LoraLoader` then checks that the tensors fit the base model.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.artifacts import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    MANIFEST_FILE,
    AdapterChat,
    ArtifactError,
    Manifest,
    read_verified,
)
from finetune_api.serving import ServedAdapter
from finetune_inference.engine.interface import VerifiedAdapter
from finetune_model.base_digest import BaseIdentity, difference
from finetune_model.chat import DEFAULT_SETTINGS, ChatSettings, reserved_kwargs
from finetune_model.servable import NotServableError, lora_arguments

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


SHOWN_DIGEST = 26
"""Characters of a digest or commit in a message."""

log = logging.getLogger(__name__)


class AdapterRefusedError(Exception):
    """An adapter that is not served; the message gives the reason, and clients that request the adapter get it."""


@dataclass(frozen=True)
class Limits:
    """Limits for adapters."""

    rank: int
    """Highest rank of an adapter."""
    memory_bytes: int
    """Memory of all adapters together, in bytes; also the largest file with weights."""


def verify(entry: ServedAdapter, limits: Limits, base: BaseIdentity | None = None) -> VerifiedAdapter:
    """Verify an adapter folder, and that it is for the base model, if that is known. Raises AdapterRefusedError."""
    directory = Path(entry.path)
    try:
        manifest, digest = read_verified(directory)
    except ArtifactError as error:
        raise AdapterRefusedError(str(error)) from None
    if entry.digest and entry.digest != digest:
        raise AdapterRefusedError(f"{directory} has digest {digest}; expected {entry.digest}")
    _check_files(directory, manifest)
    if base:
        _check_base(directory, manifest, base)
    config = _read_config(directory)
    _check_limits(directory, config, limits)
    try:
        arguments = lora_arguments(config)
    except NotServableError as error:
        raise AdapterRefusedError(str(error)) from None
    return VerifiedAdapter(
        name=entry.name,
        directory=directory,
        digest=digest,
        lora=arguments,
        weights_sha256=next(entry.sha256 for entry in manifest.files if entry.path == ADAPTER_WEIGHTS_FILE),
        has_tokenizer=(directory / "tokenizer_config.json").exists(),
        chat=_chat_settings(directory, manifest.chat),
    )


def _chat_settings(directory: Path, chat: AdapterChat | None) -> ChatSettings:
    """Return the settings that the manifest records; those of a base model for an adapter of an earlier release."""
    if chat is None:
        return DEFAULT_SETTINGS
    if reserved := reserved_kwargs(chat.template_kwargs):
        raise AdapterRefusedError(
            f"{directory / MANIFEST_FILE} has chat.templateKwargs {', '.join(reserved)}, which cannot be a variable of a template"
        )
    return ChatSettings(chat.template_kwargs, chat.system_prompt, frozenset(chat.end_tokens))


def _check_base(directory: Path, manifest: Manifest, base: BaseIdentity) -> None:
    """Raise AdapterRefusedError for an adapter of another base model, even one with the same shapes.

    A quantized base model is compared by shapes alone, because adapters are usually trained on the weights before quantization;
    the replayed fingerprint is what proves them there.
    """
    differing = difference(base, recorded_digest=manifest.base_digest, recorded_revision=manifest.base_revision)
    if differing is None:
        return
    recorded, found = differing
    trained_on = f"{manifest.base_model or 'another base model'} ({recorded[:SHOWN_DIGEST]}…)"
    if base.is_quantized:
        log.info("%s was trained on %s; %s is quantized and not compared", directory, trained_on, base.path)
        return
    raise AdapterRefusedError(
        f"{directory} was trained on {trained_on}; this server has {base.path} ({found[:SHOWN_DIGEST]}…). Serve it on the model "
        f"that it was trained on; if it is meant for this one, run: python -m finetune_trainer adopt {directory} --model {base.path}"
    )


def _check_limits(directory: Path, config: dict[str, Any], limits: Limits) -> None:
    """Check rank and size, because each adapter of a batch costs time by its rank, and all adapters share the memory."""
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [])]
    highest = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    if highest > limits.rank:
        raise AdapterRefusedError(f"{ADAPTER_CONFIG_FILE} has rank {highest}; this server allows {limits.rank} or less")
    size = (directory / ADAPTER_WEIGHTS_FILE).stat().st_size
    if size > limits.memory_bytes:
        raise AdapterRefusedError(
            f"{directory / ADAPTER_WEIGHTS_FILE} has {size} bytes; this server has {limits.memory_bytes} bytes for all adapters"
        )


def _check_files(directory: Path, manifest: Manifest) -> None:
    """Check that the manifest lists all files that are read."""
    listed = {entry.path for entry in manifest.files}
    if manifest.kind != "adapter":
        raise AdapterRefusedError(f"{directory} holds a {manifest.kind}, not an adapter")
    if ADAPTER_WEIGHTS_FILE not in listed:
        pickles = sorted(path for path in listed if path.endswith(PICKLE_SUFFIXES))
        found = f" but {', '.join(pickles)}; pickle files run code when they are read" if pickles else ""
        raise AdapterRefusedError(f"{directory} has no {ADAPTER_WEIGHTS_FILE}{found}; only safetensors are supported")
    if ADAPTER_CONFIG_FILE not in listed:
        raise AdapterRefusedError(f"{directory} has no {ADAPTER_CONFIG_FILE}")
    foreign = [name for name in TOKENIZER_FILES if name not in listed and (directory / name).exists()]
    if foreign:
        raise AdapterRefusedError(f"{directory} has {', '.join(foreign)}, which its manifest does not list")


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / ADAPTER_CONFIG_FILE).read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterRefusedError(f"{directory / ADAPTER_CONFIG_FILE} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise AdapterRefusedError(f"{directory / ADAPTER_CONFIG_FILE} is not a JSON object")
    return config
