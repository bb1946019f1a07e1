"""Where the figures of a FinetuneJob go beside its status."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import SpecModel
from finetune_api.v1alpha1.common import (
    LocalSecretReference,
)

WANDB_NAME = r"^[A-Za-z0-9_.-]+$"
"""Names that Weights & Biases accepts everywhere."""


class TensorBoardTracking(SpecModel):
    """TensorBoard's event files."""


class MlflowTracking(SpecModel):
    """A run of an MLflow server."""

    uri: Annotated[
        str,
        Field(
            description="uri of the tracking server: http(s)://HOST[:PORT][/PATH], or file:///PATH of a folder.",
            max_length=512,
            pattern=r"^(https?|file)://[^\s?#@]+$",
        ),
    ]
    experiment: Annotated[
        str,
        Field(
            description="experiment that the run belongs to; it is made if there is none of this name.",
            min_length=1,
            max_length=250,
        ),
    ] = "finetune"
    secret_ref: Annotated[
        LocalSecretReference | None,
        Field(
            description="secretRef names the Secret with the server's credentials: its key is MLFLOW_TRACKING_TOKEN, or it has "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        ),
    ] = None


class WandbTracking(SpecModel):
    """A run of Weights & Biases."""

    project: Annotated[
        str, Field(description="project that the run belongs to.", min_length=1, max_length=128, pattern=WANDB_NAME)
    ] = "finetune"
    entity: Annotated[
        str | None,
        Field(
            description="entity (user or team) of the project; the API key's default if unset.",
            min_length=1,
            max_length=128,
            pattern=WANDB_NAME,
        ),
    ] = None
    base_url: Annotated[
        str | None,
        Field(
            description="baseUrl of a server of your own: http(s)://HOST[:PORT]; the public one if unset.",
            max_length=512,
            pattern=r"^https?://[^\s?#@]+$",
        ),
    ] = None
    secret_ref: Annotated[
        LocalSecretReference | None, Field(description="secretRef names the Secret whose key is the API key.")
    ] = None


class Tracking(SpecModel):
    """Where the figures of each step go beside the job's own status. A tracker that fails never ends a training."""

    tensorboard: Annotated[
        TensorBoardTracking | None,
        Field(
            description="tensorboard writes event files to the output claim, in ADAPTER_NAME/tensorboard/JOB_UID; write {} to "
            "ask for it."
        ),
    ] = None
    mlflow: Annotated[MlflowTracking | None, Field(description="mlflow keeps a run at an MLflow server.")] = None
    wandb: Annotated[WandbTracking | None, Field(description="wandb keeps a run at Weights & Biases.")] = None
