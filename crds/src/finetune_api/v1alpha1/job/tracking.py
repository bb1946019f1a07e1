"""Experiment trackers that receive the metrics of a FinetuneJob."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import SpecModel
from finetune_api.v1alpha1.common import (
    LocalSecretReference,
)

WANDB_NAME = r"^[A-Za-z0-9_.-]+$"
"""Pattern of names that Weights & Biases accepts everywhere."""


class TensorBoardTracking(SpecModel):
    """Event files for TensorBoard."""


class MlflowTracking(SpecModel):
    """A run on an MLflow server."""

    uri: Annotated[
        str,
        Field(
            description="uri is the URI of the tracking server: http(s)://HOST[:PORT][/PATH], or file:///PATH for a folder.",
            max_length=512,
            pattern=r"^(https?|file)://[^\s?#@]+$",
        ),
    ]
    experiment: Annotated[
        str,
        Field(
            description="experiment is the name of the experiment that the run belongs to. It is created if it does not exist.",
            min_length=1,
            max_length=250,
        ),
    ] = "finetune"
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(
            description="secretRef names the Secret with the server's credentials: its key holds MLFLOW_TRACKING_TOKEN, or it "
            "has the keys MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        ),
    ] = None


class WandbTracking(SpecModel):
    """A run on Weights & Biases."""

    project: Annotated[
        str,
        Field(
            description="project is the project that the run belongs to.",
            min_length=1,
            max_length=128,
            pattern=WANDB_NAME,
        ),
    ] = "finetune"
    entity: Annotated[
        str | None,
        Field(
            description="entity is the user or team that owns the project. Default: that of the API key.",
            min_length=1,
            max_length=128,
            pattern=WANDB_NAME,
        ),
    ] = None
    base_url: Annotated[
        str | None,
        Field(
            description="baseUrl is the URL of a self-hosted server: http(s)://HOST[:PORT]. Default: the public one.",
            max_length=512,
            pattern=r"^https?://[^\s?#@]+$",
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None, Field(description="secretRef names the Secret whose key holds the API key.")
    ] = None


class Tracking(SpecModel):
    """Experiment trackers that receive the metrics of each step. A tracker that fails never ends the training."""

    tensorboard: Annotated[
        TensorBoardTracking | None,
        Field(
            description="tensorboard writes event files to the output claim, in ADAPTER_NAME/tensorboard/JOB_UID. Set it to {} to "
            "enable it."
        ),
    ] = None
    mlflow: Annotated[MlflowTracking | None, Field(description="mlflow logs a run to an MLflow server.")] = None
    wandb: Annotated[WandbTracking | None, Field(description="wandb logs a run to Weights & Biases.")] = None
