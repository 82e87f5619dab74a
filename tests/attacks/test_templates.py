"""Templates of task files that want Python's objects, the memory, or all the time there is."""

import pytest
from jinja2 import BaseLoader, Environment, StrictUndefined
from jinja2.exceptions import SecurityError, TemplateNotFound, UndefinedError
from lm_eval.utils import apply_template

from fitness.tasks import loading, templates
from fitness.tasks.templates import TemplateLimit

GROWS = "{{% set n = namespace(x='a') %}}{{% for i in range(60) %}}{{% set n.x = {} %}}{{% endfor %}}{{{{ n.x }}}}"
LONG = "('a' * 100000)"

ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by key": "{{ ''['__class__'] }}",
    "class by filter": "{{ ''|attr('__class__') }}",
    "class by format": "{{ '{0.__class__}'.format(1) }}",
    "globals of a function": "{{ range.__globals__ }}",
    "globals of a type": "{{ cycler.__init__.__globals__ }}",
    "the template itself": "{{ self.__init__ }}",
    "a document that changes": "{{ q.append(1) }}",
}
TOO_MUCH = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a multiplied text": "{{ 'a' * 10**10 }}",
    "a multiplied list": "{{ [0] * 10**9 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "doubled texts": GROWS.format("n.x ~ n.x"),
    "added texts": GROWS.format("n.x + n.x"),
    "nested lists": GROWS.format("[n.x, n.x]"),
    "nested tuples": GROWS.format("(n.x, n.x)"),
    "nested mappings": GROWS.format("{1: n.x, 2: n.x}"),
    "nested views": GROWS.format("{1: n.x, 2: n.x}.items()"),
    "nested namespaces": GROWS.format("namespace(a=n.x, b=n.x)"),
    "center": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "indent": "{{ ('a\n' * 100000)|indent(10**5) }}",
    "tabs": "{{ ('\t' * 10**5).expandtabs(10**6) }}",
    "rounding": "{{ 1.5|round(10**9, 'ceil') }}",
    "bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "batches": "{{ [1]|batch(10**9, 1)|list }}",
    "json": "{{ [1]|tojson(indent=10**9) }}",
    "mapped": "{{ range(99999)|map('center', 10**9)|list }}",
    "percent": "{{ '%01000000000d' % 1 }}",
    "percent with a star": "{{ '%*d' % (10**9, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format with a field": "{{ '{:{}}'.format(1, 10**9) }}",
    "format of a mapping": "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "replace": f"{{{{ {LONG}|replace('a', {LONG}) }}}}",
    "replace method": f"{{{{ {LONG}.replace('', {LONG}) }}}}",
    "regex": f"{{{{ {LONG}|regex_replace('a', {LONG}) }}}}",
    "regex groups": f"{{{{ {LONG}|regex_replace('(a*)', '\\\\1' * 1000) }}}}",
    "translate": f"{{{{ {LONG}.translate({{97: {LONG}}}) }}}}",
    "join": f"{{{{ range(99999)|join({LONG}) }}}}",
    "join of a text": f"{{{{ {LONG}|join({LONG}) }}}}",
    "join of bytes": f"{{{{ {LONG}.encode().join([{LONG}.encode()] * 1000) }}}}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "output": "{% for i in range(99999) %}" + "A" * 1000 + "{% endfor %}",
    "a block": "{% set x %}{% for i in range(99999) %}" + "A" * 1000 + "{% endfor %}{% endset %}",
}


@pytest.fixture
def few(monkeypatch):
    """Make templates stop earlier, to save time."""
    monkeypatch.setattr(templates, "MOST_STEPS", 100_000)
    monkeypatch.setattr(templates, "LONGEST", 200_000)
    assert loading.TaskTemplates is templates.TaskTemplates


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_templates_reach_nothing(few, template):
    with pytest.raises(SecurityError):
        apply_template(template, {"q": []})


@pytest.mark.parametrize("template", TOO_MUCH.values(), ids=TOO_MUCH)
def test_templates_that_ask_for_too_much(few, refused, template):
    with refused(TemplateLimit, "the template"):
        apply_template(template, {})


def test_a_range_is_bounded(few):
    with pytest.raises(OverflowError, match="100000"):
        apply_template("{% for i in range(10**9) %}{% endfor %}", {})


def test_recursion_ends(few):
    with pytest.raises(RecursionError):
        apply_template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", {})


def test_files_and_random_text_are_not_there(few):
    with pytest.raises(TemplateNotFound):
        apply_template("{% include '/etc/passwd' %}", {})
    with pytest.raises(UndefinedError):
        apply_template("{{ lipsum(n=1000000) }}", {})


def test_time_is_bounded(monkeypatch):
    monkeypatch.setattr(templates, "MOST_SECONDS", 0.0)
    with pytest.raises(TemplateLimit, match="takes longer than 0 s"):
        apply_template("{% for i in range(9) %}{% endfor %}", {})


@pytest.mark.parametrize(
    "template",
    [
        "{{q.strip()}}\nA. {{ choices[0] }} {{ 'a' ~ n ~ none }}\n",
        "{% for c in choices %}{{ loop.index }}/{{ loop.length }} {{ c }}{{ ', ' if not loop.last }}{% endfor %}",
        "{{ choices|join(', ') }} {{ q.split(' ')[0] }} {{ choices.index('b') }} {{ choices|map('upper')|list }}",
        "{{ '{:,}'.format(1234567) }} {{ '%d items of %s' % (12345678, q) }} {{ '%5.1f'|format(1.25) }}",
        "{{ [n, n + 1] }} {{ {'a': n} }} {{ (n, 2) }} {{ n * 2 }} {{ 'x' * 3 }} {{ 2 ** 10 }} {{ 7 % 4 }}",
        "{% set d = {'A': 0} %}{{ d['A'] }}{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(3) }}{% filter upper %}a{{ q }}{% endfilter %}",
        "{{ q|regex_replace('(q)u', '\\\\1-') }}{{ q|replace('u', 'v') }}{{ q|trim|length }}",
        "{% for c in choices if c != 'a' %}{{ c }}{% else %}none{% endfor %}{{ range(3)|list }}",
    ],
)
def test_prompts_are_as_in_a_plain_environment(template):
    plain = Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    plain.filters["regex_replace"] = lambda text, pattern, new: __import__("re").sub(pattern, new, text)
    document = {"q": " qu e ", "choices": ["a", "b"], "n": 3}
    assert apply_template(template, document) == plain.from_string(template).render(**document)
