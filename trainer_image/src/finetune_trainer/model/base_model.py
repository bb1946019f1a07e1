"""The base model: locate it, check it, load it, and identify its weights.

Only safetensors weights are read, and code that comes with a model is never run: naming a pickle or a remote module in a
spec must not execute it in a tenant's pod.
"""

import contextlib
import fnmatch
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_api.training import ModelConfig
from finetune_api.v1alpha1 import Chat, Quantization
from finetune_model.base_digest import WEIGHT_FILES, digest_of_weights
from finetune_model.model_files import load_tokenizer, resolve_precision
from finetune_trainer.errors import TrainingError, is_storage_full, on_scratch, one_line
from finetune_trainer.model.chat_template import apply_chat
from finetune_trainer.model.loaded import BaseModel
from finetune_trainer.model.quantization import check_quantization, keep_differentiable, loading_arguments

logger = logging.getLogger(__name__)

NO_WEIGHTS: Final = "it has no *.safetensors weights (pickled weights are never loaded)"
MODEL_FILES: Final = ["*.json", WEIGHT_FILES, "*.model", "*.txt", "*.jinja"]
"""Files downloaded from a hub: configuration, weights, tokenizer and chat template."""


def revision_of(config: ModelConfig, folder: Path) -> str:
    """Return the commit of a hub model (its folder's name), or the digest of a local model's weights."""
    return digest_of_weights(folder) if _is_path(config.path) else folder.name


def locate_files(config: ModelConfig, *, weights: bool = True) -> Path:
    """Return the model's folder; without `weights` those of a hub model are listed, not downloaded.

    Raises TrainingError (ModelNotFound, ModelInvalid, ModelAccessDenied).
    """
    shown = config.source or config.path
    if not _is_path(config.path):
        with on_scratch(f"model {shown}"):
            folder = _download(config, weights=weights)
        _check_folder(folder, shown, weights=weights)
        return folder
    folder = Path(config.path).expanduser()
    if not _exists(folder):
        raise TrainingError(Reason.MODEL_NOT_FOUND, f"Model {shown} does not exist; check model.source")
    _check_folder(folder, shown)
    return folder


def load(
    config: ModelConfig,
    folder: Path,
    revision: str,
    precision: str,
    quantization: Quantization = "none",
    chat: Chat | None = None,
) -> BaseModel:
    """Load model and tokenizer. Raises TrainingError (ModelInvalid, SpecInvalid)."""
    import torch
    from transformers import AutoModelForCausalLM

    shown = config.source or config.path
    dtype = resolve_precision(precision, on_gpu=torch.cuda.is_available())
    if dtype == "bfloat16" and not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2":
        # Without AVX512 the products run in plain loops: a step of a 135M model took minutes instead of seconds.
        logger.warning("bfloat16 is very slow on this CPU; hyperparameters.precision: float32 is faster")
    check_quantization(quantization, read_config(folder, shown))
    tokenizer = read_tokenizer(folder, shown)
    apply_chat(tokenizer, chat)
    arguments = (
        {} if quantization == "none" else loading_arguments(getattr(torch, dtype), on_gpu=torch.cuda.is_available())
    )
    with as_model_invalid(shown):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    if missing := sorted(report["missing_keys"]):
        raise model_invalid(shown, f"its safetensors lack {len(missing)} weights, for example {missing[0]}")
    keep_differentiable(model)
    return BaseModel(model, tokenizer, folder, revision, dtype)


def read_config(folder: Path, shown: str) -> Any:
    """Read the configuration of a causal language model. Raises TrainingError (ModelInvalid) for any other model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with as_model_invalid(shown):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or []
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
        architectures and not known.intersection(architectures)
    ):
        raise model_invalid(shown, f"its architecture is {', '.join(architectures) or config.model_type}")
    return config


def read_tokenizer(folder: Path, shown: str) -> Any:
    """Load the model's tokenizer. Raises TrainingError (ModelInvalid) for a slow one, which has no token offsets."""
    with as_model_invalid(shown):
        tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise model_invalid(shown, "it has no tokenizer.json, which is needed to tell prompt from completion")
    return tokenizer


def _is_path(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or path.count("/") != 1 or _exists(Path(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _check_folder(folder: Path, shown: str, *, weights: bool = True) -> None:
    if not (folder / "config.json").is_file():
        raise model_invalid(shown, "it has no config.json")
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise model_invalid(shown, f"its config.json cannot be read ({one_line(error)})") from None
    if not isinstance(document, dict) or "model_type" not in document:
        raise model_invalid(shown, "its config.json names no model_type")
    if weights and not any(folder.glob(WEIGHT_FILES)):
        raise model_invalid(shown, NO_WEIGHTS)


def _download(config: ModelConfig, *, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = config.path if config.revision is None else f"{config.path} at {config.revision}"
    try:
        patterns = MODEL_FILES if weights else [pattern for pattern in MODEL_FILES if pattern != WEIGHT_FILES]
        folder = Path(snapshot_download(config.path, revision=config.revision, allow_patterns=patterns))
        if not weights and not any(folder.glob(WEIGHT_FILES)):
            _check_listed(HfApi().list_repo_files(config.path, revision=config.revision), name)
    except GatedRepoError:
        raise TrainingError(
            Reason.MODEL_ACCESS_DENIED,
            f"The hub refused {name}: it is gated. Accept its terms, and set model.secretRef to a token that may read it.",
        ) from None
    except RevisionNotFoundError:
        raise TrainingError(
            Reason.MODEL_NOT_FOUND,
            f"The hub has {config.path}, but not its revision {config.revision}; check model.revision",
        ) from None
    except RepositoryNotFoundError:
        raise TrainingError(
            Reason.MODEL_NOT_FOUND,
            f"The hub has no {name}, or this token may not see it; check model.source and model.secretRef",
        ) from None
    except HFValidationError:
        raise TrainingError(
            Reason.MODEL_NOT_FOUND, f"Model {name!r} is neither an existing folder nor ORG/NAME; check model.source"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise TrainingError(
                Reason.MODEL_ACCESS_DENIED, f"The hub refused {name} (HTTP {status}); check model.secretRef"
            ) from None
        raise TrainingError(
            Reason.MODEL_NOT_FOUND, f"The hub answered HTTP {status} for {name}", retryable=True
        ) from None
    except Exception as error:  # the HTTP library of the hub's client has errors of its own, which are no OSError
        if isinstance(error, TrainingError | MemoryError) or is_storage_full(error):
            raise
        # Only the type, because the text may quote the token.
        raise TrainingError(
            Reason.MODEL_NOT_FOUND,
            f"{name} is not cached and the hub cannot be reached: {type(error).__name__}",
            retryable=True,
        ) from None
    return folder


def _check_listed(files: Sequence[str], name: str) -> None:
    if not any(fnmatch.fnmatch(file, WEIGHT_FILES) for file in files):
        raise model_invalid(name, NO_WEIGHTS)


def quiet_libraries() -> None:
    """Silence progress bars and advice of libraries, because they would drown our log lines. Errors still raise."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def model_invalid(shown: str, found: str) -> TrainingError:
    """Return the error of a model that cannot be tuned."""
    return TrainingError(
        Reason.MODEL_INVALID,
        f"Model {shown} cannot be tuned: {found}; expected the folder of a causal language model with config.json, "
        "*.safetensors and tokenizer.json",
    )


class as_model_invalid(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a phrase at its uses
    """Turn any exception that transformers raises while reading a model's files into TrainingError (ModelInvalid)."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, MemoryError):
            if type(error).__name__ == "OutOfMemoryError":
                return
            raise model_invalid(self._shown, one_line(error)) from error
