"""Prometheus metrics of the operator. Defined here, updated where the events happen."""

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter("finetune_operator_reconciles", "Reconciles by kind and result.", ["kind", "result"])
RECONCILE_SECONDS = Histogram("finetune_operator_reconcile_seconds", "Duration of reconciles.", ["kind"])
QUEUE_DEPTH = Gauge("finetune_operator_queue_depth", "Objects that are waiting for a worker.")
JOBS = Gauge("finetune_operator_jobs", "FinetuneJobs by phase, as of the last resync.", ["phase"])
STATUS_WRITES = Counter("finetune_operator_status_writes", "Status writes by kind.", ["kind"])
PROBE_VERDICTS = Counter("finetune_operator_probe_verdicts", "Fingerprint probes by verdict.", ["verdict"])
WATCH_RESTARTS = Counter("finetune_operator_watch_restarts", "Watches that were repeated after an error.")
LISTS = Counter("finetune_operator_lists", "Complete LISTs into the cache by resource.", ["resource"])
RESYNCS = Counter("finetune_operator_resyncs", "Resyncs (readings of all cached objects) by result.", ["result"])
MALFORMED_REPLIES = Counter(
    "finetune_operator_malformed_replies",
    "Replies that no API server gives (proxy pages, cut documents) by verb.",
    ["verb"],
)
