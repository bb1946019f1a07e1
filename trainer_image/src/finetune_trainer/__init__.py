"""Fine-tuning with LoRA: rows and a base model in, one committed adapter with a fingerprint out.

`training.FinetuningPipeline` is the whole run; `tasks.finetuning_task` wraps it for Celery; `worker` is the pod;
`python -m finetune_trainer --help` is for people.
"""
