"""Attempts, deadlines and output of a FinetuneJob."""

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
            description="maxAttempts is the number of failed attempts after which the job fails. An interruption (eviction, "
            "preemption, deleted pod, lost node) does not count as a failed attempt.",
            ge=1,
            le=20,
        ),
    ] = 3
    start_deadline_seconds: Annotated[
        int,
        Field(
            description="startDeadlineSeconds is the time that the pod of an attempt may take to start: to be scheduled and to "
            "pull its images.",
            ge=10,
            le=604_800,
        ),
    ] = 600
    active_deadline_seconds: Annotated[
        int | None,
        Field(
            description="activeDeadlineSeconds is the time that the job may take from its creation to the adapter, over all "
            "attempts. If unset, there is no limit.",
            ge=10,
            le=31_536_000,
        ),
    ] = None


class Output(SpecModel):
    """Destination of the adapter."""

    claim: Annotated[
        str,
        Field(
            description="claim is the PersistentVolumeClaim that receives the adapter and the checkpoints. The default claim is "
            "created if the namespace has none of that name.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = DEFAULT_ADAPTERS_CLAIM
    adapter_name: Annotated[
        str | None,
        Field(
            description="adapterName is the name of the adapter, which clients also use as `model`. Default: the job's name.",
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL_PATTERN,
        ),
    ] = None
