"""Engines: transformers + peft, and vLLM."""
