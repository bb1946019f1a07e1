"""Shared by trainer and server: chats and templates, tokenizers, model files, and the process that a model is loaded into.

`messages` (one form for messages and tools), `rendered_texts` (texts that a template left out), `chat` (one renderer for rows
and requests), `model_files` (configuration, precision, tokenizer), `process` (threads, memory, garbage collection), `servable`
and `adapter_tensors` (adapters that a server applies), `base_digest` and `token_ids`. A prompt is rendered the same way when it
is trained and when it is served because both call this package; an adapter is judged the same way for the same reason. It never
imports torch by itself, and knows neither Kubernetes nor Celery nor HTTP.
"""
