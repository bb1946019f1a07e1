"""The reconcile of a FinetuneJob."""
