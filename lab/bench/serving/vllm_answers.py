"""vLLM answers requests: `vllm_answers.py REQUESTS.json` prints one JSON line; `vllm_peer.py` runs it in vLLM's environment.

Without adapters the engine is one without LoRA at all, as for a merged model. What comes before the first round, loading and
a round to warm up, is not measured.
"""

import json
import sys
import time
from pathlib import Path

from vllm import LLM, CompletionOutput, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    adapters = {
        name: LoRARequest(name, number, path) for number, (name, path) in enumerate(asked["adapters"].items(), start=1)
    }
    lora = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": asked["rank"]} if adapters else {}
    llm = LLM(
        asked["model"],
        dtype="float32",
        max_model_len=512,
        max_num_seqs=asked["concurrent"],
        # Each round would find the prompts of the one before.
        enable_prefix_caching=False,
        enforce_eager=asked["eager"],
        **lora,
    )
    requests = asked["requests"]

    def answer_all() -> list[list[int]]:
        outputs = llm.generate(
            [{"prompt_token_ids": request["prompt"]} for request in requests],
            [SamplingParams(temperature=0, max_tokens=request["tokens"]) for request in requests],
            lora_request=[adapters.get(request["adapter"]) for request in requests] if adapters else None,
            use_tqdm=False,
        )
        return [without_end(output.outputs[0]) for output in outputs]

    answers = answer_all()
    seconds = []
    for _ in range(asked["rounds"]):
        started = time.perf_counter()
        answer_all()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"answers": answers, "seconds": seconds}))


def without_end(completion: CompletionOutput) -> list[int]:
    """Token ids up to the end token, which vLLM gives too."""
    ids = list(completion.token_ids)
    return ids[:-1] if completion.finish_reason == "stop" else ids


if __name__ == "__main__":
    main()
