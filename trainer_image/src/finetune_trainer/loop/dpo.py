"""Direct preference optimization (DPO): learning from pairs of a chosen and a rejected answer.

    loss = -log sigmoid(beta * ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))))

p is the model; q is the reference, the model that training starts from: without its adapter, or with the initial adapter
(Rafailov et al. 2023, arXiv 2305.18290). Both answers of a pair are in one micro-batch, packed with their prompt computed
once. This module imports torch and transformers, so it is imported only when training is about to start.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from finetune_trainer.batches.batching import choose_micro_batch_size
from finetune_trainer.batches.layout import BatchLayout
from finetune_trainer.data import IGNORED
from finetune_trainer.data.pairs import Pair, PreferencePairs, flattened
from finetune_trainer.loop.step_trainer import StepTrainer
from finetune_trainer.memory.out_of_memory import halve_on_oom
from finetune_trainer.model.adapter_files import ADAPTER
from finetune_trainer.runtime import distributed
from finetune_trainer.runtime.interruption import StopSignal

if TYPE_CHECKING:
    from peft import PeftModel

PAIRS_PER_PASS: Final = 32
"""Maximum number of held-out pairs in one forward pass."""
TOKENS_OF_ROWS: Final = "row_loss_tokens"
"""Key of a batch: [2P] number of tokens with loss of each row of P pairs."""


class PairLayout:
    """`BatchLayout` of pairs instead of rows."""

    def __init__(self, layout: BatchLayout) -> None:
        self._layout = layout
        self.name = layout.name

    def collate(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Collate P pairs as 2P rows, with the number of tokens that separates them."""
        rows = flattened(pairs)
        return {**self._layout.collate(rows), TOKENS_OF_ROWS: torch.tensor([row.loss_tokens for row in rows])}

    def order(self, pairs: Sequence[Pair]) -> list[int]:
        """Return a sort key for each pair; see `BatchLayout`."""
        return self._layout.order([chosen for chosen, _ in pairs])

    def row_tokens(self, pairs: Sequence[Pair], batch_size: int) -> float:
        """Return the tokens of a pair in a micro-batch, at most: a prompt that its rows share counts twice."""
        return 2 * self._layout.row_tokens(flattened(pairs), 2 * batch_size)

    def applied(self, model: "PeftModel") -> contextlib.AbstractContextManager[None]:
        """Prepare the model; see `BatchLayout`."""
        return self._layout.applied(model)


def row_log_probabilities(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the [2P] log-probability, in nats, of all tokens with loss in each row of a `PairLayout` batch."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels", TOKENS_OF_ROWS)}
    targets = batch.get("shift_labels", batch["labels"][:, 1:])
    logits = model(**inputs, use_cache=False).logits[:, : targets.shape[1]]
    wanted = targets != IGNORED
    scores = -cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
    # Packed or padded, tokens with loss are in the order of the rows.
    return torch.stack([row.sum() for row in torch.split(scores, batch[TOKENS_OF_ROWS].tolist())])


class Reference:
    """The reference model of DPO: the model that training starts from."""

    def __init__(self, adapter: Mapping[str, torch.Tensor] | None = None) -> None:
        """`adapter` holds the initial adapter's tensors by peft's names; None if training starts from an untrained one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._adapter = None
        if adapter is not None:
            self._adapter = {_place(name): tensor.to(device) for name, tensor in adapter.items()}

    @contextlib.contextmanager
    def applied(self, peft_model: "PeftModel") -> Iterator[None]:
        """Turn the model into the reference within this context; for passes without gradients."""
        if self._adapter is None:
            with peft_model.disable_adapter():
                yield
            return
        # Tensors are exchanged instead of adding a second adapter, so that layers and fused layers need not know of it.
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
    """Return a tensor's place in the model, the same for the name of a parameter and for its name in a saved file."""
    return name.removesuffix(".weight").removesuffix(f".{ADAPTER}")


def reward_margins(
    model: torch.nn.Module, peft_model: "PeftModel", batch: dict[str, Any], beta: float, reference: Reference
) -> torch.Tensor:
    """Return the [P] margins: the implicit reward of the chosen answer minus that of the rejected one.

    `peft_model` is `model` without accelerate's wrapper.
    """
    # The reference has no dropout, because the two passes would draw different masks.
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
        """Count pairs; supervised training counts tokens."""
        return len(rows)

    def count_tokens(self, rows: Sequence[Pair]) -> int:
        """Count the tokens of both rows of each pair; their prompt counts in each."""
        return super().count_tokens(flattened(rows))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Return this micro-batch's part of the step's loss."""
        peft_model = self.accelerator.unwrap_model(model)
        margins = reward_margins(model, peft_model, inputs, self._beta, self._reference)
        loss: torch.Tensor = -logsigmoid(margins).sum() / num_items_in_batch
        return loss


class HeldOutPairs:
    """Held-out pairs; the counterpart of `evaluation.HeldOutRows`."""

    def __init__(
        self, pairs: PreferencePairs, layout: PairLayout, beta: float, reference: Reference, *, on_gpu: bool
    ) -> None:
        keys = layout.order(pairs)
        self._pairs = [pair for _, pair in sorted(zip(keys, pairs, strict=True), key=lambda keyed: keyed[0])]
        self._size = choose_micro_batch_size(
            layout.row_tokens(self._pairs, PAIRS_PER_PASS), PAIRS_PER_PASS, None, on_gpu=on_gpu
        )
        self._layout = layout
        self._beta = beta
        self._reference = reference

    def measure(self, model: "PeftModel", stop: StopSignal) -> dict[str, float] | None:
        """Return metrics by name, or None if a stop was requested meanwhile; call it within `layout.applied(model)`.

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
                margins += halve_on_oom(partial(self._margins, model), pairs)
        margin = torch.cat([part for parts in distributed.all_gather(margins) for part in parts])
        return {
            "eval_loss": float(-logsigmoid(margin).mean()),
            "reward_accuracy": float((margin > 0).float().mean()),
            "reward_margin": float(margin.mean()),
        }

    def _margins(self, model: "PeftModel", pairs: Sequence[Pair]) -> torch.Tensor:
        """Return the margins of one micro-batch."""
        batch = self._layout.collate(pairs)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        return reward_margins(model, model, batch, self._beta, self._reference)
