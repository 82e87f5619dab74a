"""The Jinja environment of task files: a sandbox whose loops, values, output and time are bounded.

lm-eval renders templates in a plain environment, where a template can reach Python's objects and run without end. A
task file may come from somebody else, so `fitness.tasks.loading` replaces lm-eval's environment by this one. Templates
see no private attributes, change no values, and stop with a `TemplateLimit` when they ask for too much. Everything else
is as in lm-eval. The patterns of a task's filters, which read what models answer, are bounded in time as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sized, ValuesView
from functools import lru_cache, wraps
from threading import local
from typing import Any

import regex
from jinja2 import BaseLoader, StrictUndefined, Template, nodes, pass_context
from jinja2.runtime import Context, str_join
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LONGEST = 5_000_000
"""Characters of a text and entries of a list, nested ones included, that a template may make or show."""
MOST_STEPS = 3_000_000
"""Loop passes, calls and entries looked at in one rendering."""
MOST_SECONDS = 10.0
"""Seconds of one rendering; a prompt takes less than a millisecond."""
MOST_BITS = 10_000
"""Bits of an integer that a template may compute."""
WIDTHS = (
    *("batch", "center", "expandtabs", "indent", "int", "ljust", "pprint", "rjust"),
    *("round", "slice", "to_bytes", "tojson", "truncate", "wordwrap", "zfill"),
)
"""Filters and methods with an argument that decides how long the result is."""
_ENTRIES = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_WIDE = re.compile(r"%[^a-zA-Z%]*\d{6}|\{[^{}]*\d{6}")  # a width or a precision in a format text
_GIVEN_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")  # a width that comes from the arguments


class TemplateLimit(Exception):
    """A template asks for more than a prompt needs; the message says for what."""


class _Budget(local):
    """What is left of the current rendering, per thread; outside of one there is no limit to steps."""

    steps = 0
    deadline = float("inf")

    def begin(self) -> None:
        self.steps, self.deadline = 0, time.monotonic() + MOST_SECONDS

    def end(self) -> None:
        self.steps, self.deadline = 0, float("inf")

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise TemplateLimit(f"the template takes more than {MOST_STEPS:,} steps; shorten its loops")
        if time.monotonic() > self.deadline:
            raise TemplateLimit(f"the template takes longer than {MOST_SECONDS:g} s; simplify it")


_budget = _Budget()


class _BoundedTemplate(Template):
    def render(self, *args: Any, **kwargs: Any) -> str:
        _budget.begin()
        try:
            return super().render(*args, **kwargs)
        finally:
            _budget.end()


class TaskTemplates(ImmutableSandboxedEnvironment):
    """lm-eval's environment as a bounded sandbox; templates are compiled once.

    Every value that a template makes is at most `LONGEST` long: results of operators, filters, calls and literals are
    checked, and what could be longer than memory is checked before it is made.
    """

    template_class = _BoundedTemplate
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True, finalize=_shown, optimized=False
        )
        self.filters["regex_replace"] = _regex_replace
        self.filters = {name: _bounded(name, call) for name, call in self.filters.items()}
        self.filters |= {"_passes": _passes, "_joined": _joined, "_checked": _checked}
        del self.globals["lipsum"]
        self._compiled = lru_cache(maxsize=256)(super().from_string)

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> Template:
        """Return a compiled template; compiling takes longer than rendering."""
        return self._compiled(source, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile a template whose loops are counted and whose new values are checked."""
        return super()._generate(_Counting().visit(source), *args, **kwargs)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join pieces of output."""
        return "".join(_limited(parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator whose result is not too long."""
        _budget.spend(1)
        if operator == "%" and isinstance(left, str | bytes):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_length(len(left) + len(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        return _checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, a macro or a global function."""
        name = str(getattr(__obj, "__name__", ""))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | bytes):
            if name == "translate":
                raise TemplateLimit("the template uses the method translate, whose result has no bound; use replace")
            _check_arguments(name, (owner, *args), kwargs)
        else:
            wrapped = getattr(__obj, "__wrapped__", None)  # the sandbox's own str.format
            format_text = getattr(wrapped, "__self__", None)
            _check_arguments(name, (format_text, *args) if isinstance(format_text, str) else args, kwargs)
        return _checked(super().call(__context, __obj, *args, **kwargs))


class _Counting(NodeTransformer):
    """Counts the passes of loops, and checks the values that literals and `~` make."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_passes")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes), "_joined")

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(node, "_checked")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(node, "_checked")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "_checked") if node.ctx == "load" else node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _bounded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that checks its arguments and its result."""
    has_context = hasattr(call, "jinja_pass_arg")

    @wraps(call)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, args[1:] if has_context else args, kwargs)
        return _checked(call(*args, **kwargs))

    return bounded


def _passes(values: Iterable[Any]) -> Iterable[Any]:
    """Return what a loop runs over, with its passes counted."""
    if isinstance(values, Sized):
        return _Passes(values)  # a loop knows its length
    return _counted(values)


class _Passes:
    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return _counted(self._values)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _budget.spend(1)
        yield value


def _joined(parts: Iterable[Any]) -> str:
    """Return what `a ~ b` is."""
    return str(_checked(str_join(_checked(list(parts)))))


@pass_context
def _shown(context: Context, value: Any) -> Any:
    """Check a value before its text is made."""
    return _checked(value)


def _limited(parts: Iterable[str]) -> Iterator[str]:
    total = 0
    for part in parts:
        total += len(part)
        _check_length(total)
        yield part


def _checked(value: Any) -> Any:
    """Return a value after counting what is in it."""
    entries, waiting = 0, [value]
    while waiting:
        found = waiting.pop()
        entries += 1
        if isinstance(found, str | bytes):
            entries += len(found)
        elif isinstance(found, int):
            _check_bits(found.bit_length())
        elif isinstance(found, Mapping):
            waiting += [part for pair in found.items() for part in pair]
        elif isinstance(found, _ENTRIES):
            waiting += found
        elif isinstance(found, Namespace):
            waiting += found._Namespace__attrs.values()  # it shows them as its text
        _check_length(entries + len(waiting) - 1)
    _budget.spend(1 + entries // 1000)
    return value


def _check_arguments(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of a filter or a method from which a result follows that is too long."""
    _budget.spend(1)
    given = (*args, *kwargs.values())
    first = args[0] if args else None
    if name in WIDTHS:
        _check_length(max((abs(number) for number in given if isinstance(number, int)), default=0))
    if name == "indent" and isinstance(first, str) and len(args) > 1:
        _check_product(first.splitlines(), args[1])
    if name == "wordwrap":
        _check_length(sum(len(text) for text in given if isinstance(text, str)) ** 2 if len(given) > 3 else 0)
    if name in ("format", "format_map") and isinstance(first, str):
        _check_format(first, given[1:])
    if name == "replace" and len(args) > 2 and all(isinstance(text, str) for text in args[:3]):
        _check_length(len(args[0]) + args[0].count(args[1]) * len(args[2]))
    if name == "expandtabs" and isinstance(first, str | bytes):
        width = max((number for number in given if isinstance(number, int)), default=8)
        _check_product(first, width)
    if name == "join" and len(given) > 1 and all(isinstance(part, Sized) for part in given[:2]):
        _check_length(len(given[0]) * len(given[1]))


def _check_format(text: str | bytes, values: Iterable[Any]) -> None:
    shown = text if isinstance(text, str) else text.decode("latin-1")
    numbers = [value for value in values if isinstance(value, int)]
    if _WIDE.search(shown) or (_GIVEN_WIDTH.search(shown) and any(abs(number) > MAX_RANGE for number in numbers)):
        raise TemplateLimit("the template formats a value with more than 99,999 characters; write a smaller width")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, Sized) and isinstance(count, int):
            _check_length(len(sequence) * count)


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise TemplateLimit(f"the template makes a value longer than {LONGEST:,} characters or entries; shorten it")


def _check_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise TemplateLimit(f"the template computes a number of more than {MOST_BITS:,} bits; use smaller ones")


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """Return what lm-eval's filter `regex_replace` gives, with limits to its time and length."""
    try:
        return "".join(_limited(_replaced(text, pattern, replacement, count)))
    except TimeoutError:
        raise TemplateLimit(f"regex_replace takes too long with the pattern {pattern[:80]!r}; simplify it") from None


def _replaced(text: str, pattern: str, replacement: str, count: int) -> Iterator[str]:
    done = 0
    for number, match in enumerate(regex.finditer(pattern, text, timeout=MOST_SECONDS / 2), start=1):
        _budget.spend(1)
        _check_length(replacement.count("\\") * max(len(group or "") for group in (match[0], *match.groups())))
        yield text[done : match.start()]
        yield match.expand(replacement)
        done = match.end()
        if number == count:
            break
    yield text[done:]


class BoundedPattern:
    """The pattern of one of lm-eval's regex filters, with a limit to the time of a search.

    Parameters
    ----------
    pattern
        As the filter has compiled it.
    """

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern.pattern
        self._compiled = regex.compile(pattern.pattern, pattern.flags)

    def findall(self, text: str) -> list[Any]:
        """Return what `re.Pattern.findall` does.

        Raises
        ------
        TemplateLimit
            If the search takes longer than a filter may.
        """
        try:
            return list(self._compiled.findall(text, timeout=MOST_SECONDS / 2))
        except TimeoutError:
            raise TemplateLimit(
                f"the filter's pattern {self.pattern[:80]!r} takes longer than {MOST_SECONDS / 2:g} s on an answer; "
                "simplify it"
            ) from None
