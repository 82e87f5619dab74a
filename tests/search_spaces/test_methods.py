import pytest

from search_spaces.errors import RecipeError
from search_spaces.methods import METHODS, method_spec


def test_defaults_are_those_of_mergekit():
    defaults = {
        name: {p.name: p.default for p in spec.parameters if not p.required} for name, spec in METHODS.items()
    }
    shared = {"int8_mask": False, "lambda": 1.0, "density": 1.0}
    assert defaults == {
        "linear": {"normalize": True},
        "slerp": {},
        "task_arithmetic": {**shared, "normalize": False, "rescale": False},
        "ties": {**shared, "normalize": True, "rescale": False},
        "dare_ties": {**shared, "normalize": False, "rescale": True},
        "passthrough": {"scale": None},
    }


def test_required_parameters():
    required = {name: [p.name for p in spec.parameters if p.required] for name, spec in METHODS.items()}
    assert required == {
        "linear": ["weight"],
        "slerp": ["t"],
        "task_arithmetic": ["weight"],
        "ties": ["weight"],
        "dare_ties": ["weight"],
        "passthrough": [],
    }


@pytest.mark.parametrize("spec", METHODS.values(), ids=METHODS)
def test_entries_are_consistent(spec):
    assert METHODS[spec.name] is spec
    assert spec.max_models is None or spec.min_models <= spec.max_models
    assert set(spec.per_model) | set(spec.shared) == set(spec.parameters)
    assert len({p.name for p in spec.parameters}) == len(spec.parameters)
    for parameter in spec.parameters:
        assert parameter.doc
        assert parameter.default is None or type(parameter.default) is parameter.kind
        if parameter.search is not None:
            low, high, start = parameter.search
            assert low < high
            assert low <= start <= high
        if parameter.inert:
            assert parameter.search is None


def test_unknown_method_names_the_nearest():
    with pytest.raises(
        RecipeError, match="merge_method 'task_aritmetic' is unknown; did you mean 'task_arithmetic'"
    ):
        method_spec("task_aritmetic")
    with pytest.raises(RecipeError, match="use one of dare_ties, linear"):
        method_spec("zzz")


def test_unknown_parameter_names_the_nearest():
    with pytest.raises(RecipeError, match="ties has no parameter 'densty'; did you mean 'density'"):
        method_spec("ties").parameter("densty")


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["linear"]
