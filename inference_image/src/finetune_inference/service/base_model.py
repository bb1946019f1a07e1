"""Loading the base model, alone or with the one adapter that is merged into it, and the first token."""

import logging
import math

from finetune_api.serving import ServedAdapter, ServedModel
from finetune_inference.adapters.registry import LoadedModel
from finetune_inference.adapters.verification import AdapterRefusedError, Limits, verify
from finetune_inference.engine.interface import (
    Engine,
    Event,
    Failed,
    Finished,
    Generated,
    ModelFacts,
    ModelLoadError,
    TokenRequest,
)
from finetune_inference.text.vocabulary import load_vocabulary
from finetune_model.base_digest import BaseIdentity, read_identity

log = logging.getLogger(__name__)


def load_base(engine: Engine, model: ServedModel, created: int) -> tuple[ModelFacts, LoadedModel]:
    """Load the base model and its tokenizer. `created`: Unix seconds. Raises ModelLoadError."""
    facts = engine.load_model()
    try:
        vocabulary = load_vocabulary(model.path, model.revision)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"base model {model.name} has no usable tokenizer at {model.path}: {error}") from error
    log.info("Loaded base model %s: context length %d tokens", model.name, facts.context_length)
    return facts, LoadedModel(model.name, vocabulary, root=model.path, created=created)


def load_merged(
    engine: Engine,
    model: ServedModel,
    entry: ServedAdapter,
    limits: Limits,
    identity: BaseIdentity | None,
    created: int,
) -> tuple[ModelFacts, LoadedModel]:
    """Load the base model with one adapter merged into its weights.

    Raises ModelLoadError, also for an adapter that is refused, because there is nothing else to serve.
    """
    try:
        adapter = verify(entry, limits, identity)
        facts = engine.load_model(adapter)
        path, revision = (entry.path, None) if adapter.has_tokenizer else (model.path, model.revision)
        vocabulary = load_vocabulary(path, revision, adapter.chat)
    except (AdapterRefusedError, OSError, ValueError) as error:
        raise ModelLoadError(f"adapter {entry.name} cannot be merged into {model.name}: {error}") from error
    log.info("Merged adapter %s (%s) into %s", entry.name, adapter.digest, model.name)
    merged = LoadedModel(entry.name, vocabulary, root=entry.path, created=created, adapter=adapter, parent=model.name)
    return facts, merged


def identity_of(model: ServedModel) -> BaseIdentity | None:
    """Return the identity of the base model's files, with which adapters are compared; None, with a warning, without files."""
    try:
        return read_identity(model.path, model.revision)
    except (OSError, ValueError) as error:
        log.warning("Adapters are not compared with the base model %s: %s", model.name, error)
        return None


def warm_up(engine: Engine, name: str) -> None:
    """Generate one token, so that the slow first pass happens now and damaged weights are noticed. Raises ModelLoadError."""
    engine.add(-1, TokenRequest(prompt=[0, 0], adapter=None, max_tokens=1, logprobs=0, score_prompt=True))
    events: list[Event] = []
    while not any(isinstance(event, Finished | Failed) for event in events):
        events += [event for _, event in engine.step()]
    scores = [event.token.logprob for event in events if isinstance(event, Generated)]
    failed = any(isinstance(event, Failed) for event in events)
    if failed or any(score is None or not math.isfinite(score) for score in scores):
        raise ModelLoadError(f"base model {name} computes values that are not finite numbers; its weights are damaged")
