"""The operator of finetune.dev.

Read in this order: `reconcile.job` and `reconcile.service` (decisions, one package per kind), `handlers` (triggers),
`resources` (manifests of children). Layers: handlers -> reconcile -> io -> resources -> finetune_api. Only `io.cluster`
talks to the API server, and `io.cache` mirrors it; nothing but them knows where facts come from.
"""
