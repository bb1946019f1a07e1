"""Conversations rendered by the model's chat template, each learnt answer in the form in which it will be asked."""

from typing import Any

from finetune_model.chat import DEFAULT_SETTINGS, ChatSettings, ChatTemplateError
from finetune_model.turns import DifferentTurnError, TurnRenderer, TurnText
from finetune_trainer.data.messages import is_learnt
from finetune_trainer.data.rows import Message


class Unrenderable(Exception):
    """A conversation that the model's chat template cannot render, or not so that its answers can be told apart."""


class Renderer:
    """Renders rows with one tokenizer and one set of settings."""

    def __init__(
        self, tokenizer: Any, loss_on: str, settings: ChatSettings = DEFAULT_SETTINGS, *, every_prompt: bool = False
    ) -> None:
        self._has_template = bool(tokenizer.chat_template)
        self._turns = TurnRenderer(tokenizer, settings, every_prompt=every_prompt)
        self._loss_on = loss_on

    def render(self, messages: list[Message], tools: list[Any] | None) -> list[TurnText]:
        """Render a conversation: the whole first, then a text for each answer that it does not hold as it will be asked.

        Raises Unrenderable.
        """
        if not self._has_template:
            raise Unrenderable(
                "the model has no chat template; use rows of prompt and completion, an instruction model, or chat.template"
            )
        learnt = [index for index, message in enumerate(messages) if is_learnt(message)]
        ignored = [index for index, m in enumerate(messages) if m.get("weight") == 0] if self._loss_on == "all" else []
        try:
            return self._turns.render(messages, learnt, tools, ignored=ignored)
        except (ChatTemplateError, DifferentTurnError) as error:
            raise Unrenderable(str(error)) from None
