"""Environment variables of third-party libraries that pods get from Secrets."""

from typing import Final

OBJECT_STORE_ENV: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
)
"""Environment variables for an s3:// dataset, each from the key of the same name in the Secret of dataset.secretRef."""
MLFLOW_TOKEN_ENV: Final = "MLFLOW_TRACKING_TOKEN"  # noqa: S105 - a name
"""MLflow's own environment variable for a token, from the key that tracking.mlflow.secretRef names."""
MLFLOW_LOGIN_ENV: Final = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""MLflow's own environment variables for a login, each from the key of the same name in that Secret."""
WANDB_KEY_ENV: Final = "WANDB_API_KEY"
"""Weights & Biases' own environment variable for the API key, from the key that tracking.wandb.secretRef names."""
