"""A server with a tiny tokenizer and a public family's chat template, around an engine whose answers the test writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.serving import ServedModel, ServingConfig
from finetune_inference.config import Settings
from finetune_inference.inference import InferenceService
from support.server.calling_templates import tokenizer_of
from support.server.running_inference import Running, running
from support.server.scripted_engine import ScriptedEngine


@dataclass
class Scripted:
    """A running server, and its engine."""

    server: Running
    engine: ScriptedEngine

    def answer(self, *texts: str) -> None:
        """Answer the next requests with these texts."""
        self.engine.answer(*texts)


@contextmanager
def scripted(folder: Path, family: str, **settings: Any) -> Iterator[Scripted]:
    """Serve a family's template as the model `base`."""
    tokenizer_of(family).save_pretrained(folder)
    engine = ScriptedEngine.of(folder)
    # The first text is for the token that the service generates before it is ready.
    engine.answer("x")
    config = ServingConfig(model=ServedModel(name="base", path=str(folder)))
    service = InferenceService(config, Settings(**settings), make_engine=lambda *_: engine)
    with running(service) as server:
        engine.prompts.clear()
        yield Scripted(server, engine)
