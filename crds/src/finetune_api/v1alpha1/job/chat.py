"""Chats of a FinetuneJob: the template and the settings that rows are rendered with, and the adapter's requests after them."""

import json
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator

from finetune_api.base import SpecModel

MAX_TEMPLATE: Final = 32_768
"""Characters of a template; the largest public ones have 20,000, and the whole configuration has to fit into an annotation."""
MAX_KWARGS: Final = 8192
"""Characters of all variables as JSON."""


class Chat(SpecModel):
    """Rendering of chats, recorded with the adapter and applied to its requests."""

    template: Annotated[
        str | None,
        Field(
            description="template is the chat template (Jinja) that replaces the model's own. It is saved beside the adapter.",
            min_length=1,
            max_length=MAX_TEMPLATE,
        ),
    ] = None
    template_kwargs: Annotated[
        dict[str, Any] | None,
        Field(
            description="templateKwargs are variables of the chat template, for example enable_thinking: false. Requests may "
            "override them in chat_template_kwargs.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None
    system_prompt: Annotated[
        str | None,
        Field(
            description="systemPrompt is put before every chat that has no system message, in training and in requests.",
            min_length=1,
            max_length=16_384,
        ),
    ] = None

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.template_kwargs is not None and len(json.dumps(self.template_kwargs)) > MAX_KWARGS:
            raise ValueError(f"templateKwargs have more than {MAX_KWARGS} characters as JSON")
        return self
