"""Attempts, deadlines, suspension and output of a FinetuneJob."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import SpecModel
from finetune_api.contract import DEFAULT_ADAPTERS_CLAIM
from finetune_api.v1alpha1.common import (
    DNS_LABEL_PATTERN,
)


class Policy(SpecModel):
    """Attempts and deadlines."""

    max_attempts: Annotated[
        int,
        Field(
            description="maxAttempts is how many failed attempts end the job; an interruption (eviction, preemption, "
            "deleted pod) is not a failed attempt.",
            ge=1,
            le=20,
        ),
    ] = 3
    start_deadline_seconds: Annotated[
        int,
        Field(
            description="startDeadlineSeconds is how long an attempt's pod may take to start (scheduling, images).",
            ge=10,
            le=604_800,
        ),
    ] = 600
    active_deadline_seconds: Annotated[
        int | None,
        Field(
            description="activeDeadlineSeconds is how long the job may take in all, from its creation to the adapter.",
            ge=10,
            le=31_536_000,
        ),
    ] = None


class Output(SpecModel):
    """Where the adapter goes."""

    claim: Annotated[
        str,
        Field(
            description="claim is the PersistentVolumeClaim that receives adapter and checkpoints; the default claim is "
            "created if the namespace has none.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = DEFAULT_ADAPTERS_CLAIM
    adapter_name: Annotated[
        str | None,
        Field(
            description="adapterName is the adapter's name, also as `model` at the endpoint; the job's name if unset.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
