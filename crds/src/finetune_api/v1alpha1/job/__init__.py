"""FinetuneJob: one fine-tuning, from model and dataset to an adapter, optionally served and verified."""
