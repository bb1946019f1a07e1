"""Chat templates that write tool calls and reasoning, each after the form of a public family, in words of our own."""

from dataclasses import dataclass
from typing import Any

JSON_CALL = """{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}"""
CHATML_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@dataclass(frozen=True)
class Family:
    """A template and what it can express."""

    template: str
    special: tuple[str, ...] = ()
    """Special tokens beside those of the tiny tokenizer."""
    several: bool = True
    """True if a turn may hold several calls."""
    reasoning: bool = False
    """True if the template renders `reasoning_content`."""
    text_arguments: bool = False
    """True if the template wants arguments as JSON text."""
    short_ids: bool = False
    content: bool = True
    """True if a turn may hold content and calls."""


def _chatml(calls: str, *, head: str = "", think: str = "", prompt: str = CHATML_END) -> str:
    return (
        "{% if tools %}<|im_start|>system\n" + head + "{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n" + think + "{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{% set f = c.function %}" + calls + "{% endfor %}<|im_end|>\n"
        "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + prompt
    )


HERMES = "{% if not loop.first or m.content %}{{ '\n' }}{% endif %}<tool_call>\n" + JSON_CALL + "\n</tool_call>"
QWEN_CODER = (
    "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
THINK = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
ALWAYS_THINK = "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n"
GLM = (
    "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
)

TOOLS = "{% if tools %}Functions: {{ tools | tojson }}\n{% endif %}"
LLAMA3_HEAD = "{{ bos_token }}" + TOOLS + "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
LLAMA3_TAIL = "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
LLAMA3_SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
LLAMA_JSON = (
    LLAMA3_HEAD + "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    '{% set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}<|eot_id|>" + LLAMA3_TAIL
)
LLAMA_PYTHONIC = (
    LLAMA3_HEAD + "{{ m.content }}{% if m.tool_calls %}[{% for c in m.tool_calls %}{% if not loop.first %}, {% endif %}"
    "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{% if not loop.first %}, {% endif %}"
    "{{ k }}={{ v | tojson }}{% endfor %}){% endfor %}]{% endif %}<|eot_id|>" + LLAMA3_TAIL
)
MISTRAL_IDS = (
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% endfor %}"
)
MISTRAL_REST = (
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% else %}[INST]{{ m.content }}[/INST]{% endif %}"
    "{% endfor %}"
)
MISTRAL_SPECIAL = (
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[ARGS]",
    "[THINK]",
    "[/THINK]",
)
MISTRAL_LIST = (
    TOOLS + "{% for m in messages %}{% if m.tool_calls %}" + MISTRAL_IDS + "[TOOL_CALLS] [{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}" + MISTRAL_REST
)
MISTRAL_ARGS = (
    TOOLS
    + "{% for m in messages %}{% if m.tool_calls %}{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}"
    "{{ m.content or '' }}{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'assistant' and m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{{ m.content }}"
    "{{ eos_token }}" + MISTRAL_REST
)
DEEPSEEK = (
    "{{ bos_token }}" + TOOLS + "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
    "{% elif m.tool_calls %}<｜Assistant｜>{{ m.content or '' }}<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}\n```json\n"
    "{% set a = c.function.arguments %}{{ a if a is string else a | tojson }}\n```<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>{{ eos_token }}"
    "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
DEEPSEEK_SPECIAL = (
    "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
)  # fmt: skip
GRANITE = (
    TOOLS + "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{% if m.tool_calls %}<|tool_call|>["
    '{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]{% elif m.reasoning_content %}Here is my thought process:\n\n"
    "{{ m.reasoning_content }}\n\nHere is my response:\n\n{{ m.content }}{% else %}{{ m.content }}{% endif %}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
GRANITE_SPECIAL = ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")
PHI = (
    TOOLS + "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% if m.tool_calls %}<|tool_call|>["
    '{% for c in m.tool_calls %}{"type": "function", "function": {"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}}{% if not loop.last %}, {% endif %}{% endfor %}]<|/tool_call|>'
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PHI_SPECIAL = ("<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|tool_call|>", "<|/tool_call|>")
KIMI = _chatml(
    "{% if loop.first %}<|tool_calls_section_begin|>{% endif %}<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}"
    "<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>"
    "{% if loop.last %}<|tool_calls_section_end|>{% endif %}"
)
KIMI_SPECIAL = (
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "hermes": Family(_chatml(HERMES)),
    "qwen3": Family(_chatml(HERMES, think=THINK), reasoning=True),
    "qwen3-thinking": Family(
        _chatml(HERMES, think=ALWAYS_THINK, prompt=CHATML_END.replace("{% endif %}", "<think>\n{% endif %}")),
        reasoning=True,
    ),
    "qwen3-coder": Family(_chatml(QWEN_CODER)),
    "glm": Family(_chatml(GLM, think=ALWAYS_THINK), reasoning=True),
    "kimi": Family(KIMI, KIMI_SPECIAL),
    "llama3-json": Family(LLAMA_JSON, LLAMA3_SPECIAL, several=False, content=False),
    "llama-pythonic": Family(LLAMA_PYTHONIC, LLAMA3_SPECIAL, content=False),
    "mistral-list": Family(MISTRAL_LIST, MISTRAL_SPECIAL, short_ids=True, content=False),
    "mistral-args": Family(MISTRAL_ARGS, MISTRAL_SPECIAL, reasoning=True),
    "deepseek": Family(DEEPSEEK, DEEPSEEK_SPECIAL, text_arguments=True),
    "granite": Family(GRANITE, GRANITE_SPECIAL, content=False),
    "phi": Family(PHI, PHI_SPECIAL),
}


def tokenizer_of(name: str) -> Any:
    """Return the tiny tokenizer with a family's template and special tokens."""
    from lab.fixtures.tiny_model import make_tiny_tokenizer

    family = FAMILIES[name]
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.chat_template = family.template
    return tokenizer
