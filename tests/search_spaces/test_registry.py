from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from search_spaces.kinds import by_kind, config_classes, kind_of, register_kind
from search_spaces.registry import Registry, UnknownName, registering


class _Shape(Protocol):
    @property
    def kind(self) -> str: ...

    def build(self) -> float: ...


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    low: float = Field(default=1, gt=0)


class _Square(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["square"] = "square"
    side: float = Field(default=1, gt=0)
    inner: _Inner = _Inner()

    def build(self) -> float:
        return self.side**2


class _Circle(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["circle"] = "circle"
    radius: float = 1

    def build(self) -> float:
        return 3 * self.radius**2


SHAPES: Registry[type[_Shape]] = Registry("shape")
register_kind(SHAPES, _Square)
register_kind(SHAPES, _Circle)
Shape = Annotated[_Shape, by_kind(SHAPES, default="square")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    shape: Shape = _Square()
    others: tuple[Shape, ...] = ()


def _errors(**values: Any) -> list[tuple[tuple[Any, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        _File.model_validate(values)
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


class TestRegistry:
    def test_keeps_values_in_the_order_of_registration(self) -> None:
        registry: Registry[int] = Registry("number")
        registry.register("two", 2)
        registry.register("one", 1)
        assert (list(registry), registry.values(), len(registry)) == (["two", "one"], (2, 1), 2)
        assert registry["one"] == 1
        assert "one" in registry and "three" not in registry

    def test_a_taken_name_is_an_error_that_says_by_whom(self) -> None:
        registry: Registry[int] = Registry("merge method")
        with registering("other-package"):
            registry.register("ties", 1)
        with pytest.raises(ValueError, match="merge method 'ties' is taken, other-package registers it"):
            registry.register("ties", 2)
        assert registry["ties"] == 1

    @pytest.mark.parametrize("name", ["", "Ties", "a b", "1a", "a-b", "_a"])
    def test_a_malformed_name_is_an_error(self, name: str) -> None:
        with pytest.raises(ValueError, match="not a valid name"):
            Registry[int]("merge method").register(name, 1)

    def test_an_unknown_name_names_the_nearest_and_all(self) -> None:
        registry: Registry[int] = Registry("merge method")
        registry.register("ties", 1)
        registry.register("slerp", 2)
        with pytest.raises(UnknownName) as caught:
            registry["tie"]
        assert str(caught.value) == "there is no merge method 'tie'; did you mean 'ties'? valid: slerp, ties"
        with pytest.raises(UnknownName, match=r"'xyzzy'; valid: slerp, ties"):
            registry["xyzzy"]

    def test_origins_are_ours_outside_and_the_distributions_inside(self) -> None:
        registry: Registry[int] = Registry("number")
        registry.register("one", 1)
        with registering("evomerge-extras"):
            registry.register("two", 2)
        registry.register("three", 3)
        assert [registry.origin(name) for name in registry] == ["evomerge", "evomerge-extras", "evomerge"]
        with pytest.raises(UnknownName):
            registry.origin("four")

    def test_a_block_that_raises_leaves_nothing_registered(self) -> None:
        first, second = Registry[int]("number"), Registry[int]("letter")
        first.register("one", 1)
        with pytest.raises(ImportError), registering("broken"):
            first.register("two", 2)
            second.register("a", 1)
            raise ImportError
        assert (list(first), list(second)) == (["one"], [])
        second.register("a", 2)
        assert second.origin("a") == "evomerge"


class TestKinds:
    def test_a_class_is_registered_under_its_kind(self) -> None:
        assert kind_of(_Square) == "square"
        assert SHAPES["circle"] is _Circle

    def test_a_class_without_a_kind_or_a_method_is_refused(self) -> None:
        class Nameless(BaseModel):
            def build(self) -> float:
                return 1

        class Idle(BaseModel):
            kind: Literal["idle"] = "idle"

        with pytest.raises(ValueError, match=r"Nameless: it has no kind; declare `kind: Literal"):
            register_kind(SHAPES, Nameless)
        with pytest.raises(ValueError, match="Idle: a shape needs a method `build`"):
            register_kind(SHAPES, Idle)


class TestByKind:
    def test_the_kind_chooses_the_class(self) -> None:
        file = _File.model_validate({"shape": {"kind": "circle", "radius": 2}, "others": [{"kind": "square"}]})
        assert file == _File(shape=_Circle(radius=2), others=(_Square(),))

    def test_a_bare_name_is_a_section_with_that_kind(self) -> None:
        assert _File.model_validate({"shape": "circle", "others": ["square"]}).shape == _Circle()

    def test_a_missing_kind_is_the_default(self) -> None:
        assert _File.model_validate({"shape": {"side": 2}}).shape == _Square(side=2)

    def test_errors_inside_a_section_keep_their_place_and_name_no_class(self) -> None:
        assert [place for place, _ in _errors(shape={"kind": "circle", "side": 2})] == [("shape", "side")]
        assert [place for place, _ in _errors(others=["circle", {"inner": {"low": -1}, "side": 0}])] == [
            ("others", 1, "side"),
            ("others", 1, "inner", "low"),
        ]

    @pytest.mark.parametrize("given", ["circl", {"kind": "circl", "radius": 2}])
    def test_an_unknown_kind_is_one_error_at_kind(self, given: Any) -> None:
        assert _errors(shape=given) == [
            (("shape", "kind"), "there is no shape 'circl'; did you mean 'circle'? valid: circle, square")
        ]

    def test_a_kind_that_is_no_text_is_one_error_at_kind(self) -> None:
        ((place, text),) = _errors(shape={"kind": ["circle"]})
        assert place == ("shape", "kind")
        assert text.endswith("valid: circle, square")

    def test_without_a_default_the_kind_is_required(self) -> None:
        class File(BaseModel):
            shape: Annotated[_Shape, by_kind(SHAPES)]

        with pytest.raises(ValidationError) as caught:
            File.model_validate({"shape": {}})
        (error,) = caught.value.errors()
        assert (error["loc"], error["msg"]) == (("shape", "kind"), "missing; valid: circle, square")

    @pytest.mark.parametrize("given", [3, None, ["circle"]])
    def test_what_is_no_section_is_one_error(self, given: Any) -> None:
        assert _errors(shape=given) == [(("shape",), "write the keys of a shape, or just its kind: circle or square")]

    def test_dumps_every_key_of_the_chosen_class_and_reads_it_back(self) -> None:
        file = _File(shape=_Circle(radius=2), others=(_Square(side=3),))
        dumped = file.model_dump(mode="json")
        assert dumped["shape"] == {"kind": "circle", "radius": 2}
        assert dumped["others"][0]["inner"] == {"low": 1}
        assert _File.model_validate(dumped) == file
        assert _File.model_validate_json(file.model_dump_json()) == file

    def test_what_is_registered_later_counts(self) -> None:
        class Hexagon(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            kind: Literal["hexagon"] = "hexagon"

            def build(self) -> float:
                return 1

        class _Undo(Exception):
            pass

        with pytest.raises(_Undo), registering("late"):
            register_kind(SHAPES, Hexagon)
            assert isinstance(_File.model_validate({"shape": "hexagon"}).shape, Hexagon)
            assert Hexagon in config_classes(_File.model_fields["shape"])
            raise _Undo
        assert _errors(shape="hexagon")

    def test_the_json_schema_holds_every_class(self) -> None:
        square, circle, names = _File.model_json_schema()["properties"]["shape"]["anyOf"]
        assert {"side", "inner"} <= set(square["properties"])
        assert "radius" in circle["properties"]
        assert names == {"enum": ["circle", "square"]}


class TestConfigClasses:
    def test_the_default_comes_first(self) -> None:
        assert by_kind(SHAPES, default="circle").classes == (_Circle, _Square)
        assert by_kind(SHAPES).classes == (_Square, _Circle)

    def test_finds_the_classes_of_fields_and_of_types(self) -> None:
        assert config_classes(_File.model_fields["shape"]) == (_Square, _Circle)
        assert config_classes(_File.model_fields["others"]) == (_Square, _Circle)
        assert config_classes(Shape | None) == (_Square, _Circle)
        assert config_classes(_Inner | dict[str, _Square] | None) == (_Inner, _Square)
        assert config_classes(int | None) == ()


def test_settings_must_refuse_unknown_keys_and_read_back_what_they_write():
    class Loose(BaseModel):
        kind: Literal["loose"] = "loose"

        def build(self) -> float:
            return 0.0

    class Lossy(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        kind: Literal["lossy"] = "lossy"
        side: float = Field(default=1, exclude=True)
        area: float = Field(default_factory=iter([1.0, 2.0, 3.0]).__next__, exclude=True)

        def build(self) -> float:
            return 0.0

    with pytest.raises(ValueError, match="Loose: settings must be frozen and refuse unknown keys; write model_config"):
        register_kind(SHAPES, Loose)
    with pytest.raises(ValueError, match="Lossy: its defaults, written as JSON, do not read back equal"):
        register_kind(SHAPES, Lossy)
    assert set(SHAPES) == {"square", "circle"}
