"""The reconcile of an InferenceService."""
