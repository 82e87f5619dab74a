import pytest

from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.methods import METHODS, method_spec


def test_defaults_are_those_of_mergekit():
    defaults = {
        name: {p.name: p.default for p in spec.parameters if not p.required and not p.extension}
        for name, spec in METHODS.items()
        if spec.in_mergekit
    }
    shared = {"int8_mask": False, "lambda": 1.0, "density": 1.0}
    assert defaults == {
        "linear": {"normalize": True},
        "slerp": {},
        "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
        "multislerp": {"normalize_weights": True, "eps": 1e-8},
        "karcher": {"max_iter": 10.0, "tol": 1e-5},
        "model_stock": {"filter_wise": False},
        "task_arithmetic": {**shared, "normalize": False, "rescale": False},
        "ties": {**shared, "normalize": True, "rescale": False},
        "dare_linear": {**shared, "normalize": False, "rescale": True},
        "dare_ties": {**shared, "normalize": False, "rescale": True},
        "della_linear": {**shared, "normalize": False, "rescale": True, "epsilon": 0.15},
        "della": {**shared, "normalize": True, "rescale": True, "epsilon": 0.15},
        "breadcrumbs": {**shared, "normalize": False, "rescale": False, "gamma": 0.01},
        "breadcrumbs_ties": {**shared, "normalize": False, "rescale": False, "gamma": 0.01},
        "sce": {"select_topk": 1.0, "int8_mask": False},
        "nearswap": {},
        "arcee_fusion": {},
        "ram": {"epsilon": 1e-5},
        "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
        "passthrough": {"scale": None},
    }


def test_required_parameters():
    required = {
        name: [p.name for p in spec.parameters if p.required] for name, spec in METHODS.items() if spec.in_mergekit
    }
    without = {"passthrough", "karcher", "model_stock", "sce", "arcee_fusion", "ram", "ramplus_tl"}
    expected = {name: [] if name in without else ["weight"] for name in required} | {"slerp": ["t"], "nearswap": ["t"]}
    assert required == expected
    assert not any(p.required for spec in METHODS.values() if not spec.in_mergekit for p in spec.parameters)


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
    with pytest.raises(RecipeError, match="merge_method 'task_aritmetic' is unknown; did you mean 'task_arithmetic'"):
        method_spec("task_aritmetic")
    with pytest.raises(RecipeError, match=r"use one of .*dare_ties, .*linear, "):
        method_spec("zzz")


def test_unknown_parameter_names_the_nearest():
    with pytest.raises(RecipeError, match="ties has no parameter 'densty'; did you mean 'density'"):
        method_spec("ties").parameter("densty")


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["linear"]
