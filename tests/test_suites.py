"""`evomerge.testing` exports a conformance suite for each kind of extension."""

import pytest

import evomerge.testing


@pytest.mark.parametrize("name", evomerge.testing.__all__)
def test_every_suite_is_exported(name):
    suite = getattr(evomerge.testing, name)
    assert suite.__name__ == name
    assert [test for test in dir(suite) if test.startswith("test_")]


def test_there_is_one_for_each_kind():
    kinds = {"Evaluator", "MergeMethod", "Pool", "SearchSpace", "Strategy", "Tracker"}
    assert set(evomerge.testing.__all__) == {f"{kind}Suite" for kind in kinds}
    with pytest.raises(AttributeError, match=r"module 'evomerge.testing' has no attribute 'MadeUpSuite'"):
        _ = evomerge.testing.MadeUpSuite
