"""Logits processors for vLLM: constraints, finite logits, and seeds."""

import hashlib

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from finetune_inference.backends.common.sampling import GREEDY_BELOW, forbidden_tokens, keep_top_p
from finetune_inference.backends.vllm.vllm_sequence import VllmSequence


class _SequenceRows(LogitsProcessor):  # type: ignore[misc] # of a library that is not installed where types are checked
    """Base class that maps each row of a step's logits to its sequence."""

    def __init__(self, vllm_config: object, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, VllmSequence] = {}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of the batch."""
        process_dict_updates(self._rows, batch_update, lambda params, *_: (params.extra_args or {}).get("sequence"))


class WatchLogits(_SequenceRows):
    """Applies constraints, and marks sequences whose logits are not finite."""

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
            elif sequence.request.constraint is not None:
                forbidden = forbidden_tokens(sequence.request.constraint.allowed, logits[row])
                logits[row].masked_fill_(forbidden, -torch.inf)
        return logits


class SeededSampling(_SequenceRows):
    """Picks the tokens of sequences that have a seed.

    vLLM's own seeds end the step for all sequences when a prompt is computed in chunks on a CPU, and one seed value means none.
    """

    def is_argmax_invariant(self) -> bool:
        """Return True, because this processor matters only where tokens are sampled."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Change logits [sequences, vocabulary] in place, after penalties and temperature, before top_p."""
        for row, sequence in self._rows.items():
            sampling = sequence.request.sampling
            if sampling.seed is None or sampling.temperature < GREEDY_BELOW:
                continue
            probabilities = torch.softmax(logits[row], dim=-1)
            if sampling.top_p < 1.0:
                probabilities = keep_top_p(probabilities, sampling.top_p)
            # Seeded by the token's number, not by earlier draws, because chunks of a prompt draw tokens that are discarded.
            generator = torch.Generator(logits.device).manual_seed(_mix(sampling.seed, sequence.generated))
            token = torch.multinomial(probabilities, 1, generator=generator)
            logits[row] = -torch.inf
            logits[row, token] = 0.0
        return logits


def _mix(seed: int, number: int) -> int:
    """Hash a seed and a token's number to 64 bits, because CPU generators use only 32 bits of a seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "little")
