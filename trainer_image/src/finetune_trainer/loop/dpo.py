"""DPO (Rafailov et al. 2023, arXiv 2305.18290): learning from pairs of a chosen and a rejected answer.

    loss = -log sigmoid(beta * ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))))

p is the model, q the model that training starts from: the same one with its adapter off, or with the one that it continues from.
Both answers of a pair are in one pass, packed with their prompt computed once. Like `trainer`, this module is imported only once
training is about to start.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from finetune_trainer.batches.batching import choose_micro_batch_size
from finetune_trainer.batches.layout import BatchLayout
from finetune_trainer.data import IGNORED
from finetune_trainer.data.pairs import Pair, PreferencePairs, flattened
from finetune_trainer.loop.step_trainer import StepTrainer
from finetune_trainer.memory.out_of_memory import in_halves
from finetune_trainer.model.adapter_files import ADAPTER
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import StopSignal

PAIRS_PER_PASS: Final = 32
"""Most held-out pairs in one forward pass."""
TOKENS_OF_ROWS: Final = "row_loss_tokens"
"""Key of a batch: [2P] tokens with loss of each row of P pairs."""


class PairPasses:
    """`BatchLayout` of pairs instead of rows."""

    def __init__(self, passes: BatchLayout) -> None:
        self._passes = passes
        self.name = passes.name

    def collate(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """A micro-batch of P pairs as one of 2P rows, with the means to tell its rows apart."""
        rows = flattened(pairs)
        return {**self._passes.collate(rows), TOKENS_OF_ROWS: torch.tensor([row.loss_tokens for row in rows])}

    def order(self, pairs: Sequence[Pair]) -> list[int]:
        """For each pair a rank; see `BatchLayout`."""
        return self._passes.order([chosen for chosen, _ in pairs])

    def row_tokens(self, pairs: Sequence[Pair], batch_size: int) -> float:
        """Tokens that a pair takes in a pass, at most: that its rows share their prompt is not counted."""
        return 2 * self._passes.row_tokens(flattened(pairs), 2 * batch_size)

    def applied(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """See `BatchLayout`."""
        return self._passes.applied(model)


def row_log_probabilities(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """[2P] log-probability of all tokens with loss of each row of a batch of `PairPasses`, in nats."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels", TOKENS_OF_ROWS)}
    targets = batch.get("shift_labels", batch["labels"][:, 1:])
    logits = model(**inputs, use_cache=False).logits[:, : targets.shape[1]]
    wanted = targets != IGNORED
    scores = -cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
    # Packed or padded, tokens with loss are in the order of the rows.
    return torch.stack([row.sum() for row in torch.split(scores, batch[TOKENS_OF_ROWS].tolist())])


class Reference:
    """The model that training starts from."""

    def __init__(self, adapter: Mapping[str, torch.Tensor] | None = None) -> None:
        """`adapter` has the tensors, by peft's names, that training starts from; None for an untrained adapter."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._adapter = None
        if adapter is not None:
            self._adapter = {_place(name): tensor.to(device) for name, tensor in adapter.items()}

    @contextlib.contextmanager
    def applied(self, peft_model: Any) -> Iterator[None]:
        """Within this context the model is the reference; for passes without gradients."""
        if self._adapter is None:
            with peft_model.disable_adapter():
                yield
            return
        # Exchanged in place of a second adapter: layers, and what replaces them, need not know of it.
        parameters = {_place(name): value for name, value in peft_model.named_parameters() if value.requires_grad}
        trained = {place: value.data for place, value in parameters.items()}
        try:
            for place, value in parameters.items():
                value.data = self._adapter[place]
            yield
        finally:
            for place, value in parameters.items():
                value.data = trained[place]


def _place(name: str) -> str:
    """Where a tensor is in the model: the same for the name of a parameter and that of the tensor when it is saved."""
    return name.removesuffix(".weight").removesuffix(f".{ADAPTER}")


def reward_margins(
    model: Any, peft_model: Any, batch: dict[str, Any], beta: float, reference: Reference
) -> torch.Tensor:
    """[P] by how much the implicit reward of the chosen answer is above that of the rejected one.

    `peft_model` is `model` without what accelerate may have wrapped around it.
    """
    # The reference has no dropout, of which the two passes would have different ones.
    training = peft_model.training
    peft_model.eval()
    with torch.no_grad(), reference.applied(peft_model):
        before = row_log_probabilities(model, batch)
    peft_model.train(training)
    rewards = beta * (row_log_probabilities(model, batch) - before)
    return rewards[0::2] - rewards[1::2]


class PreferenceTrainer(StepTrainer):
    """A `StepTrainer` whose rows are pairs and whose loss is DPO's, a mean over all pairs of a step."""

    loss_is_scaled_for_ga = True

    def __init__(self, *, beta: float, reference: Reference, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._beta = beta
        self._reference = reference

    def count_items(self, rows: Sequence[Pair]) -> int:
        """Pairs of the step, where supervised training counts tokens."""
        return len(rows)

    def count_tokens(self, rows: Sequence[Pair]) -> int:
        """Tokens of both answers of each pair, their prompt in each."""
        return super().count_tokens(flattened(rows))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """This micro-batch's part of the step's loss."""
        peft_model = self.accelerator.unwrap_model(model)
        margins = reward_margins(model, peft_model, inputs, self._beta, self._reference)
        loss: torch.Tensor = -logsigmoid(margins).sum() / num_items_in_batch
        return loss


class HeldOutPairs:
    """Held-out pairs; what `evaluation.HeldOutRows` is to rows."""

    def __init__(
        self, pairs: PreferencePairs, passes: PairPasses, beta: float, reference: Reference, *, on_gpu: bool
    ) -> None:
        ranks = passes.order(pairs)
        self._pairs = [pair for _, pair in sorted(zip(ranks, pairs, strict=True), key=lambda ranked: ranked[0])]
        self._size = choose_micro_batch_size(
            passes.row_tokens(self._pairs, PAIRS_PER_PASS), PAIRS_PER_PASS, None, on_gpu=on_gpu
        )
        self._passes = passes
        self._beta = beta
        self._reference = reference

    def measure(self, model: Any, stop: StopSignal) -> dict[str, float] | None:
        """Metrics by name, to be called within `passes.applied(model)`; None if a stop came first.

        `eval_loss` is DPO's, `reward_margin` the mean margin, `reward_accuracy` the share of pairs whose margin is above 0.
        """
        model.eval()
        margins = []
        with torch.inference_mode():
            for pairs in distributed.rank_batches(self._pairs, self._size):
                if distributed.agree_to_stop(stop):
                    return None
                if not pairs:
                    continue
                margins += in_halves(partial(self._margins, model), pairs)
        margin = torch.cat([part for parts in distributed.all_gather(margins) for part in parts])
        return {
            "eval_loss": float(-logsigmoid(margin).mean()),
            "reward_accuracy": float((margin > 0).float().mean()),
            "reward_margin": float(margin.mean()),
        }

    def _margins(self, model: Any, pairs: Sequence[Pair]) -> torch.Tensor:
        """Those of one pass."""
        batch = self._passes.collate(pairs)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        return reward_margins(model, model, batch, self._beta, self._reference)
