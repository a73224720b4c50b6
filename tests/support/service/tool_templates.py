"""Chat templates for the tiny tokenizers that render tools and calls in each of the forms that models use."""

TURN = "<|{{ m.role }}|>{{ m.content or '' }}"
ROLES = "{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
HERMES = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    + ROLES
    + TURN
    + "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|end|>" + END
)
"""The form of Qwen."""
LLAMA3 = (
    "{# <|start_header_id|> #}{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    + ROLES
    + TURN
    + '{% for call in m.tool_calls or [] %}{"name": "{{ call.function.name }}", "parameters": '
    "{{ call.function.arguments | tojson }}}{% endfor %}<|end|>" + END
)
"""The form of Llama 3.1."""
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}<|end|>{% endif %}"
    + ROLES
    + TURN
    + "{% if m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{% endfor %}]{% endif %}<|end|>" + END
)
"""The form of Mistral 7B, version 0.3."""
