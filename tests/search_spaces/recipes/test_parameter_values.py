import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.recipes.parameter_values import Condition, at, chain, constant, evaluate, interpolate, simplified

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
)
values = st.floats(-2, 2)
filters = st.sampled_from([None, "*", "", "mlp", "mlp.up", "self_attn", "norm", "layers.1", "weight"])
some_settings = st.lists(st.builds(Condition, st.sampled_from([0.0, 0.5, 1.0]), filters), max_size=6).map(tuple)


@pytest.mark.parametrize(
    ("t", "expected"),
    [(0.0, 0.1), (1 / 3, 0.4), (0.5, 0.5), (2 / 3, 0.6), (1.0, 0.9)],
)
def test_gradient_is_piecewise_linear(t, expected):
    assert interpolate((0.1, 0.4, 0.6, 0.9), t) == pytest.approx(expected)


def test_gradient_of_truth_values_steps():
    assert [interpolate((True, False), t) for t in (0.0, 0.4, 1.0)] == [True, True, False]


def test_first_match_decides():
    setting = (Condition(0.1, "mlp"), Condition(0.2, "mlp.up"), Condition(0.3))
    assert [evaluate(setting, name, 0.0) for name in NAMES] == [0.3, 0.3, 0.1, 0.3]


def test_no_match_says_nothing():
    assert evaluate((Condition(0.1, "mlp"),), "model.norm.weight", 0.0) is None


def test_scopes_fall_through():
    inner, outer = (("weight", (Condition(0.1, "mlp"),)),), (("weight", constant(0.2)),)
    joined = chain((inner, (), outer), "weight", 0.9)
    assert [evaluate(joined, name, 0.0) for name in NAMES] == [0.2, 0.2, 0.1, 0.2]
    assert chain(((),), "density", 1.0) == constant(1.0)


@given(setting=some_settings)
def test_simplified_means_the_same_and_is_no_longer(setting):
    short = simplified(setting)
    assert [evaluate(short, name, 0.0) for name in NAMES] == [evaluate(setting, name, 0.0) for name in NAMES]
    assert len(short) <= len(setting)
    assert simplified(short) == short


@given(gradient=st.lists(values, min_size=1, max_size=9).map(tuple), t=st.floats(0, 1))
def test_gradient_stays_between_its_values(gradient, t):
    value = at((Condition(gradient, "mlp"),), t)[0].value
    assert min(gradient) - 1e-12 <= value <= max(gradient) + 1e-12
