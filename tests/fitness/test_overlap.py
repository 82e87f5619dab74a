"""Questions that are nearly equal are found; templates, short sums and equal questions are not."""

import random

import pytest

from fitness.overlap import Overlaps, Question, plain_text

LONG = "A train leaves the old station at nine and reaches the harbour after two hours and a half of slow travel"


def near(one, other):
    groups = {"a": [Question("1", one)], "b": [Question("2", other)]}
    return bool(Overlaps(groups).between("a", "b"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what is the capital of  France"),
        ("Is it 'red', or blue?", "is it red or blue"),
        ("ＡＢＣ です。", "abc です"),
        (LONG, f"Tell me: {LONG}, and why?"),
        (LONG, LONG.replace("travel", "riding")),
        ("日本の首都はどこですか教えてください", "では日本の首都はどこですか教えて"),
    ],
)
def test_nearly_equal_questions(one, other):
    assert near(one, other) and near(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 + 4 =", "3 - 4 ="),
        ("f(x) = 2", "f[x] = 2"),
        ("3 - 4", "3 4"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        (LONG, "A train leaves the new station at noon and never reaches any harbour at all because of the snow today"),
    ],
)
def test_different_questions(one, other):
    assert not near(one, other)


def test_equal_questions_are_somebody_elses_business():
    groups = {"a": [Question("1", LONG)], "b": [Question("1", LONG)]}
    assert Overlaps(groups).between("a", "b") == []


def test_what_many_questions_share_is_a_template():
    rng = random.Random(0)
    template = "Read the following statement with care and say whether you agree or disagree with it in one word : "
    texts = [template + " ".join(rng.choices("abcdefghijklmnop", k=12)) for _ in range(60)]
    groups = {
        "a": [Question(f"a{at}", text) for at, text in enumerate(texts[:30])],
        "b": [Question(f"b{at}", text) for at, text in enumerate([*texts[30:], texts[3].upper()])],
    }
    assert Overlaps(groups).between("a", "b") == [3]


def test_of_many_phrases_a_sample_is_compared(monkeypatch):
    monkeypatch.setattr("fitness.overlap.MOST_PHRASES", 2000)
    rng = random.Random(0)
    texts = [" ".join(rng.choices([f"w{n}" for n in range(500)], k=200)) for _ in range(40)]
    copies = [f"{text} more" for text in texts[:5]]
    groups = {
        "a": [Question(f"a{at}", text) for at, text in enumerate(texts)],
        "b": [Question(f"b{at}", text) for at, text in enumerate(copies)],
    }
    assert Overlaps(groups).between("a", "b") == [0, 1, 2, 3, 4]


def test_text_without_words_is_itself():
    assert plain_text("... !") == "... !"
