"""The vLLM engine: the same server, adapters and checks on a library for large models on GPUs.

vLLM reads these variables when it is imported, so they are set here, before any module of this package imports it.
"""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
"""One process, so that a step is a call and a logits processor sees our objects."""
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
"""The model runner that supports logits processors like `WatchLogits`."""
os.environ["VLLM_NO_USAGE_STATS"] = "1"
"""No usage reports over the network."""
os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
"""See `max_model_len` in `loading`."""
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
