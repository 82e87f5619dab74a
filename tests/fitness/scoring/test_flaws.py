"""Prompts that are cut, texts without an end, and items without a score are counted, per task."""

import pytest

from fitness.results import TaskError
from fitness.scoring.evaluator import Evaluator

PARTLY = '''
def partly(doc, results):
    """No score for what a model writes to some documents: nothing, None, or NaN."""
    given = {"w1": {}, "w2": {"exact_match": None}, "w3": {"exact_match": float("nan")}}
    tried = results[0] in ("", doc["answer"])  # what is tried before a search
    return {"exact_match": 1.0} if tried else given.get(doc["answer"], {"exact_match": 1.0})


def never(doc, results):
    return {"exact_match": 1.0} if results[0] in ("", doc["answer"]) else {}
'''


def rows(*answers):
    return [
        {"question": "w1 " * (3 + at) + "=", "single": ["w1", "w2"], "gold": 0, "answer": a}
        for at, a in enumerate(answers)
    ]


OTHER = [{"question": "w8 w9 =", "single": ["w1", "w2"], "gold": 0, "answer": "w9"}]


@pytest.fixture
def scored(toys, tokenizer, llama):
    """Return a function that scores a toy task's items."""

    def scored(*tasks, max_length=None, **keys):
        suite = toys.suite(*tasks, **keys)
        return Evaluator(suite, tokenizer, max_length=max_length).score(llama, suite.pool.subset("all", 0))

    return scored


def test_whole_answers_have_no_flaws(toys, scored):
    toys.write("a", "mc", validation=6, test=6)
    assert scored("a").flaws == {}


def test_cut_prompts_are_counted(toys, scored):
    docs = {"validation": rows("w5", "w6", "w7", "w8"), "test": OTHER}
    toys.write("a", "mc", docs=docs)
    toys.write("b", "gen", docs=docs)
    assert scored("a", "b", max_length=64).flaws.keys() <= {"truncated"}
    # the questions have 4, 5, 6 and 7 tokens; an answer has one more, which is not an input, or six
    assert scored("a", "b", max_length=11).flaws["cut"] == {"b": 2}
    assert scored("a", max_length=5).flaws["cut"] == {"a": 2}


def test_texts_without_an_end_are_counted(toys, scored):
    docs = {"validation": rows("w5", "w6", "w7", "w8"), "test": OTHER}
    toys.write("a", "gen", docs=docs, generation_kwargs={"until": ["never"], "max_gen_toks": 2, "do_sample": False})
    some = scored("a").flaws.get("truncated", {}).get("a", 0)
    toys.write("b", "gen", docs=docs, generation_kwargs={"until": ["w", "<", "=", "?", "."], "max_gen_toks": 2})
    assert some > 0 and "truncated" not in scored("b").flaws


def test_items_without_a_score_count_as_0_and_are_counted(toys, scored):
    (toys.folder / "partly.py").write_text(PARTLY)
    docs = {"validation": rows("w1", "w2", "w3", "w4"), "test": OTHER}
    toys.write("a", "gen", docs=docs, process_results="partly.partly")
    found = scored("a", max_length=64)
    assert found.scores.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found.flaws["unscored"] == {"a": 3}


def test_a_task_without_any_score_is_refused(toys, scored):
    (toys.folder / "partly.py").write_text(PARTLY)
    toys.write("a", "gen", docs={"validation": rows("w1", "w2"), "test": OTHER}, process_results="partly.never")
    with pytest.raises(TaskError, match="no number for any of 2 items"):
        scored("a")
