"""Registries of named things that other packages may add to, and config sections that are read by their `kind`.

A `Registry` maps names to values and remembers which package registered each. `by_kind` makes a pydantic annotation
from a registry of config classes: the section's `kind` chooses the class that reads the section.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

T = TypeVar("T")
ConfigClass = TypeVar("ConfigClass", bound=type[BaseModel])


OURS = ("search_spaces", "fitness", "evomerge")
"""The packages of this project."""


class UnknownName(KeyError):
    """A name that nothing was registered under; the text names the nearest registered one."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class _Registration:
    """Who registers at the moment, and how to take back what was registered."""

    origin: str
    undo: list[Callable[[], object]] = field(default_factory=list)


_current: ContextVar[_Registration | None] = ContextVar("current registration", default=None)


@contextmanager
def registering(origin: str) -> Iterator[None]:
    """Record `origin`, a distribution's name, for everything registered inside the block.

    If the block raises, everything it registered is removed again, in all registries.
    """
    registration = _Registration(origin)
    token = _current.set(registration)
    try:
        yield
    except BaseException:
        for undo in reversed(registration.undo):
            undo()
        raise
    finally:
        _current.reset(token)


class Registry(Generic[T]):
    """Values by name, in the order of registration.

    Parameters
    ----------
    noun
        What the values are, for messages: ``merge method``.
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str, value: T, module: str = "") -> None:
        """Add a value, with the origin that `registering` sets (``evomerge`` outside of it).

        Parameters
        ----------
        name
            A lower-case identifier.
        value
            What it stands for.
        module
            Where the value is defined. What is defined in this project is ours, whoever imports it first.

        Raises
        ------
        ValueError
            If the name is taken or is not a lower-case identifier.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{self.noun} {name!r}: not a valid name; use lower-case letters, digits and _")
        if name in self._values:
            raise ValueError(f"{self.noun} '{name}' is taken, {self._origins[name]} registers it; use another name")
        registration = None if module.partition(".")[0] in OURS else _current.get()
        self._values[name] = value
        self._origins[name] = "evomerge" if registration is None else registration.origin
        if registration is not None:
            registration.undo.append(lambda: (self._values.pop(name), self._origins.pop(name)))

    def __getitem__(self, name: str) -> T:
        """Return the value registered under `name`.

        Raises
        ------
        UnknownName
            If there is none; the text names the nearest one.
        """
        try:
            return self._values[name]
        except (KeyError, TypeError):
            raise UnknownName(self.unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> tuple[T, ...]:
        """Return all values in the order of registration."""
        return tuple(self._values.values())

    def items(self) -> tuple[tuple[str, T], ...]:
        """Return all names with their values in the order of registration."""
        return tuple(self._values.items())

    def origin(self, name: str) -> str:
        """Return the name of the distribution that registered `name`; ``evomerge`` for our own."""
        self[name]
        return self._origins[name]

    def unknown(self, name: object) -> str:
        """Return the message about a name that is not registered: the nearest one, and all of them."""
        near = nearest(name, self)
        hint = "" if near is None else f"did you mean '{near}'? "
        return f"there is no {self.noun} {name!r}; {hint}valid: {', '.join(sorted(self))}"


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name that is most like an unknown one; None if none is like it."""
    return next(iter(get_close_matches(str(name), sorted(valid), n=1, cutoff=0.5)), None)


def kind_of(config_class: type[BaseModel]) -> str:
    """Return the `kind` that a config class is for: the default of its field ``kind``.

    Raises
    ------
    ValueError
        If the class has no such field, or it has no default.
    """
    kind = config_class.model_fields.get("kind")
    if kind is None or not isinstance(kind.default, str):
        raise ValueError(
            f'{config_class.__name__}: it has no kind; declare `kind: Literal["my_name"] = "my_name"` in the class'
        )
    return kind.default


def register_kind(registry: Registry[Any], config_class: ConfigClass, needs: Iterable[str] = ("build",)) -> ConfigClass:
    """Register a config class under its `kind` and return it.

    Parameters
    ----------
    registry
        Where to add it.
    config_class
        A pydantic model with a field ``kind: Literal["NAME"] = "NAME"``.
    needs
        Methods that the class must have.

    Raises
    ------
    ValueError
        If the name is taken, or the class has no kind, lacks a method, accepts unknown keys, can change after it was
        read, or does not read back what it writes.
    """
    name = kind_of(config_class)
    missing = [method for method in needs if not callable(getattr(config_class, method, None))]
    if missing:
        raise ValueError(f"{config_class.__name__}: a {registry.noun} needs a method `{missing[0]}`; define it")
    _check_settings(config_class)
    registry.register(name, config_class, config_class.__module__)
    return config_class


def _check_settings(config_class: type[BaseModel]) -> None:
    """Check what a run relies on: typing errors are refused, and the run's own config reads back as it was."""
    rules = config_class.model_config
    if not rules.get("frozen") or rules.get("extra") != "forbid":
        raise ValueError(
            f"{config_class.__name__}: settings must be frozen and refuse unknown keys; write model_config = "
            'ConfigDict(frozen=True, extra="forbid")'
        )
    if any(field.is_required() for field in config_class.model_fields.values()):
        return
    settings = config_class()
    if config_class.model_validate(settings.model_dump(mode="json")) != settings:
        raise ValueError(
            f"{config_class.__name__}: its defaults, written as JSON, do not read back equal; correct them"
        )


@dataclass(frozen=True)
class ByKind:
    """Annotation of a config field whose class is chosen by the section's `kind`; see `by_kind`."""

    registry: Registry[Any]
    default: str | None

    @property
    def classes(self) -> tuple[type[BaseModel], ...]:
        """The registered config classes in the order of registration, but the default's first."""
        kinds = sorted(self.registry, key=lambda kind: kind != self.default)  # stable
        return tuple(self.registry[kind] for kind in kinds)

    def validate(self, value: Any) -> BaseModel:
        """Return the config that `value` (a section, a kind's name or a config) describes.

        Raises
        ------
        ValidationError
            Of the class that reads the section; or at ``kind``, if that names no class.
        """
        if isinstance(value, BaseModel) and isinstance(value, self.classes):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            kinds = " or ".join(sorted(self.registry))
            raise PydanticCustomError(
                "section",
                "write the keys of a {noun}, or just its kind: {kinds}",
                {"noun": self.registry.noun, "kinds": kinds},
            )
        kind = value.get("kind", self.default)
        if kind not in self.registry:
            raise self._unknown(kind)
        config: BaseModel = self.registry[kind].model_validate({**value, "kind": kind})
        return config

    def _unknown(self, kind: object) -> ValidationError:
        text = f"missing; valid: {', '.join(sorted(self.registry))}" if kind is None else self.registry.unknown(kind)
        error = PydanticCustomError("unknown_kind", "{text}", {"text": text})
        return ValidationError.from_exception_data(
            self.registry.noun, [InitErrorDetails(type=error, loc=("kind",), input=None)]
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by `validate` when called, so that later registrations count; dump with the value's own class."""
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the union of the registered classes' schemas, and of their names as the shorthand."""
        sections = [handler(config_class.__pydantic_core_schema__) for config_class in self.classes]
        return {"anyOf": [*sections, {"enum": sorted(self.registry)}]}


def by_kind(registry: Registry[Any], default: str | None = None) -> ByKind:
    """Return the annotation for a section that one of a registry's config classes reads, chosen by its `kind`.

    Use it as ``Annotated[BaseConfig, by_kind(SPACES, default="mixture")]``. A bare name is the section with that kind
    and nothing else; a section without a kind has the default. Errors in the section keep their place in it, and an
    unknown kind is one error at ``kind``.

    Parameters
    ----------
    registry
        Config classes by kind; what is registered later counts as well.
    default
        The kind of a section that names none; None: it must name one.
    """
    return ByKind(registry, default)


def config_classes(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the config classes that a field or its type mentions, those of registries included, each once.

    Parameters
    ----------
    annotation
        A pydantic field (``Model.model_fields[NAME]``) or a type.
    """
    return tuple(dict.fromkeys(_config_classes(annotation)))


def _config_classes(annotation: Any) -> Iterator[type[BaseModel]]:
    parts: Iterable[Any] = get_args(annotation)
    metadata = getattr(annotation, "__metadata__", ())
    if isinstance(annotation, FieldInfo):
        parts, metadata = [annotation.annotation], annotation.metadata
    elif isinstance(annotation, ByKind):
        yield from annotation.classes
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in [part for part in metadata if isinstance(part, ByKind)] or parts:
        yield from _config_classes(part)
