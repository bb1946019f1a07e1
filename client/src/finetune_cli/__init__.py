"""The command `finetune`. `main` lists its commands; `local` runs a FinetuneJob on this machine."""
