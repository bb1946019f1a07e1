"""The engines: transformers (default) and vLLM, each in its own package, on parts in `common`."""
