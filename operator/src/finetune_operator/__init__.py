"""The operator of finetune.dev.

Read in this order: `reconcile.decide` (what should happen), `reconcile.finetune_job` (one pass), `controller` (when),
`startup` (the watch), `resources` (what is made). Layers: handlers -> reconcile -> resources -> finetune_api; only `cluster`
talks to the API server, only `handlers` and `startup` know kopf.
"""
