"""The server: one base model and its LoRA adapters behind an OpenAI-compatible API, with or without Kubernetes.

Read in this order: `inference` (the service, without HTTP), `engine` (the seam to what computes) and
`transformers_engine`, `scheduler` (the thread that owns it), `adapters` and `lora` (what is believed), `app` (HTTP).
"""
