"""Config sections that are read by their `kind`: the classes of a registry, which other packages may add to.

`by_kind` makes a pydantic annotation from a registry of config classes: the section's `kind` chooses the class that
reads the section.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from search_spaces.registry import Registry

ConfigClass = TypeVar("ConfigClass", bound=type[BaseModel])


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
