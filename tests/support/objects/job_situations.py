"""Hypothesis strategies: any status of a FinetuneJob, anything that may be observed about it, and any answer to its children."""

from datetime import timedelta

from hypothesis import strategies as st

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_api.v1alpha1 import Condition, FinetuneJobStatus
from finetune_api.v1alpha1.job.status import FailureStatus
from finetune_operator.reconcile.job.plan import ActionOutcome, Observed, Refusal
from support.objects.operator_objects import (
    INITIALIZING,
    NOW,
    a_child,
    a_failure,
    a_finished_pod,
    a_pod,
    a_progress,
    a_refused_pod,
    a_running_pod,
    a_success,
    a_validated_pod,
    a_validating_pod,
    an_interruption,
)

ATTEMPTS = st.integers(0, 4)
TIMES = st.integers(-400, 400).map(lambda seconds: NOW + timedelta(seconds=seconds))
REASONS = st.sampled_from(list(Reason))
OUTCOMES = st.one_of(
    st.sampled_from(["", "Traceback", '{"result": "x"}', a_success(), an_interruption(checkpoint_step=3)]),
    st.builds(lambda reason, retryable: a_failure(reason, retryable=retryable), REASONS, st.booleans()),
)

statuses = st.builds(
    lambda **fields: FinetuneJobStatus(**fields),
    attempt=ATTEMPTS,
    failed_attempts=ATTEMPTS,
    conditions=st.lists(
        st.builds(
            lambda **fields: Condition(**fields),
            type=st.sampled_from([c for c in ConditionType if c not in ("Ready", "Progressing")]),
            status=st.sampled_from(["True", "False", "Unknown"]),
            reason=REASONS,
            last_transition_time=TIMES,
        ),
        max_size=5,
        unique_by=lambda c: c.type,
    ),
    last_failure=st.none()
    | st.builds(
        lambda attempt, reason, time: FailureStatus(attempt=attempt, reason=reason, finish_time=time),
        st.integers(1, 4),
        REASONS,
        st.none() | TIMES,
    ),
    start_time=st.none() | TIMES,
    completion_time=st.none() | TIMES,
)
children = st.builds(
    lambda attempt, **fields: a_child(attempt, **fields),
    ATTEMPTS,
    outcome=st.sampled_from(["", "Complete", "Failed"]),
    is_deleting=st.booleans(),
    is_suspended=st.booleans(),
    created=st.none() | TIMES,
)
pods = st.one_of(
    st.builds(
        lambda attempt, outcome, code, **fields: a_finished_pod(outcome, attempt, code, **fields),
        ATTEMPTS,
        OUTCOMES,
        st.sampled_from([0, 1, 2, 3, 28, 75, 137, 143, -1]),
        is_deleting=st.booleans(),
        ended_reason=st.sampled_from(["", "OOMKilled", "Error"]),
    ),
    st.builds(lambda attempt, **f: a_running_pod(attempt, **f), ATTEMPTS, is_deleting=st.booleans()),
    st.builds(
        lambda attempt, **f: a_validated_pod("8 rows", attempt, **f),
        ATTEMPTS,
        phase=st.sampled_from(["Pending", "Failed"]),
        waiting=st.sampled_from([INITIALIZING, ("CreateContainerError", "x")]),
        is_deleting=st.booleans(),
    ),
    st.builds(lambda attempt, **f: a_validating_pod(attempt, **f), ATTEMPTS, is_deleting=st.booleans()),
    st.builds(
        lambda attempt, outcome, code, **fields: a_refused_pod(outcome, attempt, code, **fields),
        ATTEMPTS,
        OUTCOMES,
        st.sampled_from([1, 2, 3, 28, 75, 137, 143, -1]),
        is_deleting=st.booleans(),
        ended_reason=st.sampled_from(["OOMKilled", "Error"]),
    ),
    st.builds(
        lambda attempt, **f: a_pod(attempt, **f),
        ATTEMPTS,
        phase=st.sampled_from(["Pending", "Unknown", "Failed"]),
        waiting=st.none() | st.sampled_from([("ErrImagePull", "x"), ("CreateContainerError", "secret")]),
        unschedulable=st.none() | st.just(("Unschedulable", "no")),
        reason=st.sampled_from(["", "Evicted", "NodeLost", "OutOfcpu"]),
        created=st.none() | TIMES,
    ),
)
observations = st.builds(
    Observed,
    children=st.lists(children, max_size=3).map(tuple),
    pods=st.lists(pods, max_size=3).map(tuple),
    claims=st.dictionaries(st.sampled_from(["models", "finetune-adapters"]), st.booleans()),
    progress=st.none() | st.builds(a_progress, st.integers(0, 10)),
)
outcomes = st.sampled_from(
    [
        *[ActionOutcome()] * 4,
        ActionOutcome(conflict="Job x"),
        ActionOutcome(refusal=Refusal("exceeded quota", is_final=False)),
        ActionOutcome(refusal=Refusal("spec.x is invalid", is_final=True)),
    ]
)
specs = st.fixed_dictionaries(
    {},
    optional={
        "suspend": st.booleans(),
        "cancel": st.booleans(),
        "policy": st.builds(lambda n: {"maxAttempts": n, "activeDeadlineSeconds": 350}, st.integers(1, 3)),
        "serve": st.just({}),
    },
)
