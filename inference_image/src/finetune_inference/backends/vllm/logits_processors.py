"""Logits processors for vLLM: constraints, least lengths, finite logits, candidates, and seeds."""

import hashlib

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from finetune_inference.backends.common.sampling import (
    GREEDY_BELOW,
    forbid_end_tokens,
    forbidden_tokens,
    keep_candidates,
)
from finetune_inference.backends.vllm.vllm_sequence import VllmSequence
from finetune_inference.engine.interface import Sampling


class _SequenceRows(LogitsProcessor):  # type: ignore[misc] # of a library that is not installed where types are checked
    """Base class that maps each row of a step's logits to its sequence."""

    def __init__(self, vllm_config: object, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, VllmSequence] = {}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of the batch."""
        process_dict_updates(self._rows, batch_update, lambda params, *_: (params.extra_args or {}).get("sequence"))


class WatchLogits(_SequenceRows):
    """Applies constraints and least lengths, and marks sequences whose logits are not finite."""

    def is_argmax_invariant(self) -> bool:
        """Return False, because a constraint changes the likeliest token."""
        return False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Change logits [sequences, vocabulary] in place, before all other processors."""
        # The largest logit is NaN if any logit is, and infinite if softmax has no finite result.
        usable = logits.amax(dim=-1).isfinite().tolist()
        for row, sequence in self._rows.items():
            if not usable[row]:
                sequence.broken = True
                logits[row] = 0.0
                continue
            request = sequence.request
            if request.constraint is not None:
                logits[row].masked_fill_(forbidden_tokens(request.constraint.allowed, logits[row]), -torch.inf)
            if sequence.generated < request.min_tokens and sequence.stop_ids:
                # vLLM's own min_tokens would forbid the end of a constrained answer as well, and leave no token.
                ends = torch.tensor(sorted(sequence.stop_ids), device=logits.device)
                logits[row] = forbid_end_tokens(logits[row], ends)
        return logits


class SeededSampling(_SequenceRows):
    """Picks the tokens of sequences that have a seed, and the candidates of those that have min_p.

    vLLM's own seeds end the step for all sequences when a prompt is computed in chunks on a CPU, and one seed value means none.
    Its min_p comes before top_k and top_p, so that top_p keeps fewer tokens than transformers does.
    """

    def is_argmax_invariant(self) -> bool:
        """Return True, because this processor matters only where tokens are sampled."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Change logits [sequences, vocabulary] in place, after penalties and temperature, before top_p."""
        for row, sequence in self._rows.items():
            sampling = sequence.request.sampling
            if not picks_candidates(sampling) or sampling.temperature < GREEDY_BELOW:
                continue
            probabilities = keep_candidates(torch.softmax(logits[row], dim=-1), sampling)
            if sampling.seed is None:
                logits[row].masked_fill_(probabilities == 0.0, -torch.inf)
                continue
            # Seeded by the token's number, not by earlier draws, because chunks of a prompt draw tokens that are discarded.
            generator = torch.Generator(logits.device).manual_seed(_mix(sampling.seed, sequence.generated))
            token = torch.multinomial(probabilities, 1, generator=generator)
            logits[row] = -torch.inf
            logits[row, token] = 0.0
        return logits


def picks_candidates(sampling: Sampling) -> bool:
    """Return whether `SeededSampling` applies top_k, top_p and min_p to a sequence, and vLLM does not."""
    return sampling.seed is not None or sampling.min_p > 0.0


def _mix(seed: int, number: int) -> int:
    """Hash a seed and a token's number to 64 bits, because CPU generators use only 32 bits of a seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "little")
