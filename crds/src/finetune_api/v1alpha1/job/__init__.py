"""Parts of the FinetuneJob kind, one module per part of its spec, and its status. Import them from `finetune_api.v1alpha1`."""
