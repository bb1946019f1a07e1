"""The regression gate: a new version of an adapter replaces the served one unless its metric is worse. Pure."""

from collections.abc import Iterable
from typing import Final

from finetune_api.v1alpha1 import Metric, MetricStatus, RegressionGate

MORE_IS_BETTER: Final = frozenset({"exact_match"})


def find_regression(
    gate: RegressionGate, new: Iterable[Metric | MetricStatus], served: Iterable[Metric | MetricStatus]
) -> str | None:
    """Explain why the new version must not replace the served one; None if it may.

    A served version that carries no such metric is replaced by any: there is nothing to compare with.
    """
    before, now = _value(served, gate.metric), _value(new, gate.metric)
    if before is None:
        return None
    if now is None:
        return f"serve.gate compares {gate.metric}, which the evaluation of this job did not measure."
    worse_by = before - now if gate.metric in MORE_IS_BETTER else now - before
    if worse_by <= gate.max_regression:
        return None
    return (
        f"{gate.metric} is {now:g}, of the served version {before:g}: worse by {worse_by:.4g}, and serve.gate allows "
        f"{gate.max_regression:g}. The adapter is stored, and the served version stays."
    )


def _value(metrics: Iterable[Metric | MetricStatus], name: str) -> float | None:
    text = next((metric.value for metric in metrics if metric.name == name), None)
    return None if text is None else float(text)
