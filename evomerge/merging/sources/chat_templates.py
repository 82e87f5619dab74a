"""Chat templates that a recipe may ask for: Jinja text, a known format by name, or the sources' own.

mergekit 0.1.5 knows the same formats by name; the text here is our own. transformers removes the line break after a
block tag when it renders them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from evomerge.merging.sources.aligned import original
from evomerge.merging.sources.source import Source
from search_spaces.recipes.errors import RecipeError

_CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_ALPACA = """\
{% for message in messages %}
{% if message['role'] == 'system' %}
{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' %}
{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- else %}
{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '### Response:\\n' }}
{%- endif %}
"""

_LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

_MISTRAL = """\
{{ bos_token }}
{%- for message in messages %}
{% if message['role'] == 'assistant' %}
{{ ' ' + message['content'] + eos_token }}
{%- else %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- endif %}
{% endfor %}
"""

_EXAONE = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '[|user|]' + message['content'] + '\\n' }}
{%- else %}
{{ '[|' + message['role'] + '|]' + message['content'] + '[|endofturn|]\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '[|assistant|]' }}
{%- endif %}
"""

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
)


def chat_template(wanted: str | None, sources: Iterable[Source]) -> str | None:
    """Return the Jinja text that a recipe's `chat_template` stands for; None keeps the tokenizer donor's template.

    ``auto`` is the most common template among the sources; of equally common ones, the first.

    Raises
    ------
    RecipeError
        If `wanted` is neither Jinja text nor a known name.
    """
    if wanted is None or "{" in wanted:
        return wanted
    if wanted == "auto":
        own = [template for source in sources if (template := original(source).tokenizer.chat_template()) is not None]
        return Counter(own).most_common(1)[0][0] if own else None
    if wanted not in TEMPLATES:
        names = ", ".join(TEMPLATES)
        raise RecipeError(f"chat_template: '{wanted}' is not a template; write Jinja text, auto, or one of {names}")
    return TEMPLATES[wanted]
