"""All settings of the trainer, and the reader of a TrainingConfig.

There are two kinds. `TrainerSettings` describes this process (path of the configuration, broker, log); it comes from
environment variables, with defaults for a pod. `TrainingConfig` describes the run (model, dataset, hyperparameters); it is
one JSON or YAML document, the same for the operator and for a person.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_api import contract as constants
from finetune_api.reasons import Reason
from finetune_api.training import JobIdentity, TrainingConfig
from finetune_api.validation import problems_of
from finetune_trainer.errors import TrainingError


class TrainerSettings(BaseSettings):
    """Settings of the process, each from the environment variable of its name in capitals, or of its alias."""

    model_config = SettingsConfigDict(env_ignore_empty=True, populate_by_name=True)

    model_name_or_path: str | None = None
    """MODEL_NAME_OR_PATH: base model for runs by hand, a local checkpoint folder or ORG/NAME of a hub repository. Replaces
    the configuration's `model.path`; ignored in a pod, whose configuration is the record of the job."""
    config_path: Path = Field(default=Path(constants.CONFIG_PATH), validation_alias="FINETUNE_CONFIG_PATH")
    """Configuration of a pod, mounted by the operator."""
    termination_log: Path = Field(default=Path(constants.TERMINATION_LOG), validation_alias="FINETUNE_TERMINATION_LOG")
    """File that a pod's Outcome is written to."""
    broker_url: str | None = Field(default=None, validation_alias=constants.BROKER_URL_ENV)
    """Redis URL for Celery; without it the pod trains and reports progress to its log only."""
    broker_timeout: float = Field(default=3.0, gt=0, validation_alias="FINETUNE_BROKER_TIMEOUT")
    """Seconds to reach the broker before the pod continues without it."""
    message_timeout: float = Field(default=5.0, gt=0, validation_alias="FINETUNE_MESSAGE_TIMEOUT")
    """Seconds to wait for the pod's own message before it runs the task without it."""
    progress_interval: float = Field(default=2.0, ge=0, validation_alias="FINETUNE_PROGRESS_INTERVAL")
    """Minimum seconds between two progress reports."""
    progress_file: Path | None = Field(default=None, validation_alias="FINETUNE_PROGRESS_FILE")
    """File that the latest progress is written to as JSON, for a reader on this machine; unset for none."""
    gpu_memory: int | None = Field(default=None, ge=0, validation_alias=constants.GPU_MEMORY_ENV)
    """Memory in bytes of the GPU that the run will have, for `validate`, which has none: 0 for a GPU of unknown size, unset
    for none."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", validation_alias="FINETUNE_LOG_LEVEL"
    )
    """Lowest level of log messages."""


class SourceSettings(BaseSettings):
    """Settings of downloads, each from the environment; the operator takes credentials from a Secret."""

    model_config = SettingsConfigDict(env_ignore_empty=True, populate_by_name=True)

    allow_private: bool = Field(default=False, validation_alias=constants.ALLOW_PRIVATE_SOURCES_ENV)
    """Allow https:// and s3:// to resolve to addresses that are not public, and s3:// to use plain HTTP."""
    timeout: float = Field(default=600.0, gt=0, validation_alias="FINETUNE_SOURCE_TIMEOUT")
    """Seconds that one download may take."""
    downloads: Path | None = Field(default=None, validation_alias=constants.DOWNLOADS_ENV)
    """Folder for downloaded rows; a temporary one by default. A later container of the pod uses the files kept there."""
    keep_downloads: bool = False
    """Keep downloaded rows in that folder."""
    token: SecretStr | None = Field(default=None, validation_alias=constants.DATASET_TOKEN_ENV)
    """Bearer token of https://, hub token of hf://."""
    aws_access_key_id: str | None = None
    aws_secret_access_key: SecretStr | None = None
    aws_session_token: SecretStr | None = None
    aws_region: str = "us-east-1"
    aws_endpoint_url: str | None = None
    """Base URL of an S3-compatible store; Amazon's by default."""

    @field_validator(
        "token",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "aws_region",
        "aws_endpoint_url",
        mode="before",
    )
    @classmethod
    def _fit_for_a_header(cls, value: Any, info: ValidationInfo) -> Any:
        """Strip the line break at the end of Secrets made from files; a blank value counts as unset.

        Raises TrainingError (SpecInvalid) for a value that does not fit a header, and not ValueError, because pydantic's
        errors show values.
        """
        if not isinstance(value, str):
            return value
        field = cls.model_fields[str(info.field_name)]
        value = value.strip()
        if not (value.isascii() and value.isprintable()):
            name = field.validation_alias or str(info.field_name).upper()
            raise TrainingError(
                Reason.SPEC_INVALID,
                f"{name} contains characters other than printable ASCII; write it into the Secret of dataset.secretRef again",
            )
        return value or field.default


def load_config(path: Path, *, model_name_or_path: str | None = None) -> TrainingConfig:
    """Read a TrainingConfig from JSON or YAML; `model_name_or_path` replaces the document's model.

    Raises TrainingError (SpecInvalid) that lists every problem by field.
    """
    document = _read_document(path)
    if model_name_or_path:
        document = {**document, "model": {"path": model_name_or_path}}
    try:
        return TrainingConfig.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error, document=document, model=TrainingConfig)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise TrainingError(Reason.SPEC_INVALID, f"{path} has {count}: {'; '.join(map(str, problems))}") from None


def load_pod_config(path: Path) -> tuple[TrainingConfig, JobIdentity]:
    """Read the configuration of a pod, which names its job and attempt. Raises TrainingError (SpecInvalid)."""
    config = load_config(path)
    if config.job is None:
        raise TrainingError(
            Reason.SPEC_INVALID, f"{path}: job is missing, which every pod needs. Use `train CONFIG` to run by hand."
        )
    return config, config.job


def _read_document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TrainingError(Reason.SPEC_INVALID, f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TrainingError(Reason.SPEC_INVALID, f"{path} is not UTF-8 text") from None
    try:
        document = json.loads(text) if path.suffix == ".json" else _load_yaml(text)
    except ValueError as error:
        raise TrainingError(Reason.SPEC_INVALID, f"{path} is neither JSON nor YAML: {error}") from None
    if not isinstance(document, dict):
        raise TrainingError(Reason.SPEC_INVALID, f"{path} contains a {type(document).__name__}; expected a mapping")
    return document


def _load_yaml(text: str) -> Any:
    # Imported here, because only people write YAML, and a pod starts faster without it.
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
