"""The server: one base model and its LoRA adapters behind an OpenAI-compatible API, with or without Kubernetes.

Read in this order: `inference` (the service, without HTTP), `service` (its three parts), `engine` (the interface to what
computes, and the scheduler that owns it), `backends` (the engines), `adapters` (verification, list and registry), `text`
(tokens to text and back), `api` (HTTP).
"""
