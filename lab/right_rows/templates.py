"""Chat templates of the cases, with the tiny tokenizer's special tokens: ChatML, and what others do differently."""

from typing import Final

from lab.fixtures.tiny_model import CHAT_TEMPLATE

_TURN: Final = "<|im_start|>{{ m.role }}\n"
_END: Final = "<|im_end|>\n"
_PROMPT: Final = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_CALLS: Final = (
    "{% for call in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}'
)

TEMPLATES: Final[dict[str, str | None]] = {
    "none": None,
    # Writes role and content, and nothing else.
    "chatml": CHAT_TEMPLATE,
    # Tools in a system message of their own, calls as JSON, reasoning in every turn.
    "tools": (
        "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}" + _END + "{% endif %}"
        "{% for m in messages %}" + _TURN + "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }}" + _CALLS + _END + "{% endfor %}" + _PROMPT
    ),
    # Adds texts, so that a content of null is an error, and knows no tools.
    "adds": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" + _PROMPT
    ),
    # Leaves out system messages.
    "no-system": (
        "{% for m in messages if m.role != 'system' %}" + _TURN + "{{ m.content }}" + _END + "{% endfor %}" + _PROMPT
    ),
    # Only the first system message counts.
    "first-system": (
        "{% for m in messages %}{% if m.role != 'system' or loop.first %}" + _TURN + "{{ m.content }}" + _END
        + "{% endif %}{% endfor %}" + _PROMPT
    ),
    # Refuses system messages.
    "refuses-system": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + _TURN + "{{ m.content | trim }}" + _END + "{% endfor %}" + _PROMPT
    ),
    # Leaves out results of tools.
    "no-results": (
        "{% for m in messages if m.role != 'tool' %}" + _TURN + "{{ m.content }}" + _CALLS + _END + "{% endfor %}" + _PROMPT
    ),
    # Names of tools without what they do.
    "names-only": (
        "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} {% endfor %}" + _END + "{% endif %}"
        "{% for m in messages %}" + _TURN + "{{ m.content }}" + _CALLS + _END + "{% endfor %}" + _PROMPT
    ),
    # Arguments in the template's own words, as XML-like templates write them.
    "xml": (
        "{% for m in messages %}" + _TURN + "{{ m.content }}{% for call in m.tool_calls or [] %}<call={{ call.function.name }}>"
        "{% for key, value in call.function.arguments.items() %}<{{ key }}>{{ value }}</{{ key }}>{% endfor %}</call>{% endfor %}"
        + _END + "{% endfor %}" + _PROMPT
    ),
    # Names of participants.
    "named": (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name else '' }}\n{{ m.content }}"
        + _END + "{% endfor %}" + _PROMPT
    ),
}  # fmt: skip
