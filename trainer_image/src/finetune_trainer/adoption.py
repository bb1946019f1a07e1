"""Adoption of an adapter that another program trained (TRL, Axolotl, LLaMA-Factory, Unsloth): from peft's folder to ours.

The folder is judged by the server's rules, its fingerprint is taken as training does, and it is committed with a manifest into
OUTPUT/NAME/RUN_ID. The source is only read. Pickles are never opened. RUN_ID follows from the content, so that the same folder
on the same base model is adopted once.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from finetune_api.artifacts import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    FINGERPRINT_FILE,
    MANIFEST_FILE,
    RUN_RECORD_FILE,
    AdapterChat,
    ArtifactError,
    Manifest,
    read_verified,
    sha256_of,
)
from finetune_api.fingerprint import MIN_EFFECT, Fingerprint
from finetune_api.reasons import Reason
from finetune_api.training import ModelConfig
from finetune_model.adapter_tensors import own_tensors, tensor_problem
from finetune_model.chat import DEFAULT_SETTINGS, ChatSettings
from finetune_model.servable import (
    AdapterLayout,
    NotServableError,
    adapter_layout,
    listed,
    lora_arguments,
    without_patterns,
)
from finetune_model.token_ids import tokens_without_embedding
from finetune_trainer.errors import TrainingError, one_line
from finetune_trainer.model import base_model
from finetune_trainer.model.fingerprint import PROMPTS, prompt_ids, take_fingerprint
from finetune_trainer.store.run_store import Committed, RunStore

if TYPE_CHECKING:
    import torch

    from finetune_trainer.model.loaded import BaseModel

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files of a tokenizer that servers read."""
NAME: Final = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
"""An adapter's name, which is also that of its folder."""


@dataclass(frozen=True)
class Adopted:
    """Result of an adoption."""

    committed: Committed
    effect: float
    """Nats per token between tuned and base model."""
    is_new: bool
    """False if the same folder was adopted before."""
    left_out: list[str]
    """Files and folders of the source that are not a part of the adapter."""
    remarks: list[str] = field(default_factory=list)


def adopt(source: Path, model: str, output: Path, name: str | None = None) -> Adopted:
    """Check a folder that peft saved, and commit it as an adapter of `model` below `output`.

    Raises TrainingError (AdapterNotFound, AdapterIncompatible, SpecInvalid, and those of the base model).
    """
    config = _read_source(source)
    chat = _recorded_chat(source)
    name = _checked_name(name or source.resolve().name)
    base_model.quiet_libraries()
    wanted = ModelConfig(path=model)
    folder = base_model.locate_files(wanted)
    plain, layout, remarks = _judge(source, config, base_model.read_config(folder, model))
    remarks += _origin_remarks(config, model)
    base = base_model.load(wanted, folder, base_model.revision_of(wanted, folder), "auto")
    used, left_out = _files(source)
    store = RunStore(output, name, _run_id(source, used, base.digest), attempt=1)
    if committed := store.committed_adapter():
        return Adopted(committed, _effect(committed), is_new=False, left_out=left_out, remarks=remarks)
    tensors = _own_tensors(source, layout, base.model)
    store.open()
    try:
        committed = _commit(store, source, plain, used, tensors, base, model, chat)
    finally:
        store.discard_staging()
        store.remove_checkpoints()
    effect = _effect(committed)
    if effect < MIN_EFFECT:
        remarks.append(
            f"the adapter changes answers by {effect:.4f} nats per token; below {MIN_EFFECT} no endpoint can be verified"
        )
    return Adopted(committed, effect, is_new=True, left_out=left_out, remarks=remarks)


def _read_source(source: Path) -> dict[str, Any]:
    """Return adapter_config.json. Raises TrainingError (AdapterNotFound) that says what the folder holds instead."""
    if not source.is_dir():
        raise _not_found(source, "it is not a folder")
    if not (source / ADAPTER_WEIGHTS_FILE).is_file():
        pickles = sorted(file.name for file in source.glob("adapter_model.*") if file.suffix in PICKLE_SUFFIXES)
        if pickles:
            problem = f"it has {pickles[0]} but no {ADAPTER_WEIGHTS_FILE}; pickles run code when they are read"
            raise _not_found(source, f"{problem}. Save it again as safetensors: model.save_pretrained(...)")
        nested = sorted(file.parent for file in source.glob(f"*/{ADAPTER_WEIGHTS_FILE}"))
        hint = f"; name one of its folders, for example {nested[-1]}" if nested else ""
        raise _not_found(source, f"it has no {ADAPTER_WEIGHTS_FILE}{hint}")
    try:
        config = json.loads((source / ADAPTER_CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _not_found(source, f"its {ADAPTER_CONFIG_FILE} cannot be read ({one_line(error)})") from None
    if not isinstance(config, dict):
        raise _not_found(source, f"its {ADAPTER_CONFIG_FILE} is not a JSON object")
    return config


def _recorded_chat(source: Path) -> AdapterChat | None:
    """Return the chat settings of an adapter of ours, which stay; None for a folder of another program."""
    if not (source / MANIFEST_FILE).exists():
        return None
    try:
        return read_verified(source)[0].chat
    except ArtifactError as error:
        raise _not_found(source, f"its {MANIFEST_FILE} does not verify ({error})") from None


def _checked_name(name: str) -> str:
    if not NAME.match(name):
        raise TrainingError(
            Reason.SPEC_INVALID,
            f"--name is {name!r}; use up to 63 letters, digits, dots, dashes and underscores, for example support-tone",
        )
    return name


def _judge(source: Path, config: dict[str, Any], model_config: Any) -> tuple[dict[str, Any], AdapterLayout, list[str]]:
    """Return the configuration without patterns, the layout, and remarks. Raises TrainingError (AdapterIncompatible)."""
    plain, remarks = config, []
    try:
        try:
            arguments = lora_arguments(config)
        except NotServableError:
            if not _has_patterns(config):
                raise
            plain = without_patterns(config, model_config)
            arguments = lora_arguments(plain)
            remarks.append("patterns of module names were replaced by the names that they match")
        return plain, adapter_layout(arguments, model_config), remarks
    except NotServableError as error:
        raise _incompatible(source, one_line(error)) from None


def _has_patterns(config: Mapping[str, Any]) -> bool:
    keys = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern")
    return config.get("peft_type") == "LORA" and any(config.get(key) for key in keys)


def _origin_remarks(config: Mapping[str, Any], model: str) -> list[str]:
    """Compare the base model's name with the one in the adapter; names only, because folders move."""
    recorded = str(config.get("base_model_name_or_path") or "")
    if not recorded or Path(recorded).name.lower() == Path(model).name.lower():
        return []
    return [
        f"{ADAPTER_CONFIG_FILE} names the base model {recorded}, --model is {model}; if they differ, answers are wrong though "
        "shapes fit"
    ]


def _files(source: Path) -> tuple[list[Path], list[str]]:
    """Return the files to adopt, and the names of those that are left out."""
    wanted = [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE]
    # A tokenizer is whole or absent: a lone chat template would be combined with nothing.
    if (source / "tokenizer.json").is_file() and (source / "tokenizer_config.json").is_file():
        wanted += TOKENIZER_FILES
    ours = {*wanted, MANIFEST_FILE, FINGERPRINT_FILE, RUN_RECORD_FILE}
    left_out = sorted(path.name + ("/" if path.is_dir() else "") for path in source.iterdir() if path.name not in ours)
    return [source / name for name in wanted if (source / name).is_file()], left_out


def _run_id(source: Path, used: list[Path], base_digest: str) -> str:
    digest = hashlib.sha256(base_digest.encode())
    for file in used:
        digest.update(f"{file.relative_to(source)} {sha256_of(file)}\n".encode())
    return f"adopted-{digest.hexdigest()[:16]}"


def _own_tensors(source: Path, layout: AdapterLayout, model: Any) -> "dict[str, torch.Tensor]":
    """Return the adapter's tensors without copies of the base model's. Raises TrainingError (AdapterIncompatible)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(source / ADAPTER_WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise _incompatible(source, f"{ADAPTER_WEIGHTS_FILE} is not a safetensors file ({one_line(error)})") from None
    try:
        tensors = own_tensors(tensors, layout, dict(model.named_modules()))
    except NotServableError as error:
        raise _incompatible(source, str(error)) from None
    if problem := tensor_problem(layout.tensors, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise _incompatible(source, f"{ADAPTER_WEIGHTS_FILE} {problem}")
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise _incompatible(source, f"{ADAPTER_WEIGHTS_FILE} has values that are not finite in {listed(broken)}")
    return tensors


def _commit(
    store: RunStore,
    source: Path,
    config: dict[str, Any],
    used: list[Path],
    tensors: "dict[str, torch.Tensor]",
    base: "BaseModel",
    model: str,
    chat: AdapterChat | None,
) -> Committed:
    """Write the adapter into staging, take the fingerprint of what was written, and commit it."""
    from peft import PeftModel
    from safetensors.torch import save_file

    staging = store.stage_adapter()
    for file in used:
        shutil.copyfile(file, staging / file.name)
    document = {**config, "base_model_name_or_path": model, "inference_mode": True}
    _write_json(staging / ADAPTER_CONFIG_FILE, document)
    save_file(tensors, staging / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    tokenizer = base.tokenizer
    if (staging / "tokenizer.json").exists():
        tokenizer = base_model.read_tokenizer(staging, str(source))
    else:
        tokenizer.save_pretrained(staging)
    rows = base.model.get_input_embeddings().weight.shape[0]
    settings = ChatSettings(chat.template_kwargs, chat.system_prompt) if chat else DEFAULT_SETTINGS
    ids = [token for prompt in PROMPTS for token in prompt_ids(tokenizer, prompt, settings)]
    if unknown := tokens_without_embedding(ids, rows, tokenizer):
        raise _incompatible(
            source,
            f"its tokenizer or chat template writes the token {unknown}; the model has embeddings for {rows} tokens",
        )
    tuned = PeftModel.from_pretrained(base.model, staging)
    tuned = tuned.to("cuda") if base.on_gpu else tuned
    fingerprint = take_fingerprint(tuned, tokenizer, base.dtype, settings=settings)
    _write_json(staging / FINGERPRINT_FILE, fingerprint.to_dict())
    record = {"formatVersion": 1, "adopted": {"from": source.resolve().name, "files": [file.name for file in used]}}
    _write_json(staging / RUN_RECORD_FILE, {**record, "base": {"model": model, "revision": base.revision}})
    manifest = Manifest(
        kind="adapter",
        step=0,
        base_model=model,
        base_revision=base.revision,
        base_digest=base.digest,
        chat=chat,
        files=[],
    )
    return store.commit_adapter(manifest)


def _effect(committed: Committed) -> float:
    return Fingerprint.model_validate_json((committed.path / FINGERPRINT_FILE).read_text()).effect


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _not_found(source: Path, problem: str) -> TrainingError:
    return TrainingError(
        Reason.ADAPTER_NOT_FOUND,
        f"There is no adapter to adopt at {source}: {problem}. Name the folder that peft's save_pretrained wrote, with "
        f"{ADAPTER_CONFIG_FILE} and {ADAPTER_WEIGHTS_FILE}",
    )


def _incompatible(source: Path, problem: str) -> TrainingError:
    return TrainingError(Reason.ADAPTER_INCOMPATIBLE, f"The adapter at {source} cannot be adopted: {problem}")
