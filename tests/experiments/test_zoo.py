"""The zoo: models that load, tasks that lm-eval accepts anywhere, splits that share no list, numbers that agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.zoo import evaluate
from experiments.zoo.items import TASK_ITEMS, TASKS, documents, write_items
from experiments.zoo.language import (
    HIGHEST,
    LONGEST,
    NUMBER_WORDS,
    OPERATIONS,
    Problem,
    split_of,
)
from experiments.zoo.tokenizer import build_tokenizer
from experiments.zoo.train import IGNORE, LENGTH, MODELS, STAGES, draw_batch, train_zoo

ZOO = MODELS.parent
FOUND = "found per layer"
lists = st.lists(st.integers(0, HIGHEST), min_size=2, max_size=LONGEST, unique=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODELS / "base")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((ZOO / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lm_eval_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Every task, loaded by lm-eval from a working directory that is not the repository."""
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        manager = TaskManager(include_path=str(TASKS), include_defaults=False)
        assert sorted(manager.all_tasks) == sorted(TASK_ITEMS)
        yield manager.load(list(TASK_ITEMS))["tasks"]


@pytest.mark.parametrize("name", STAGES)
def test_model_loads_with_its_tokenizer(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.dtype == torch.bfloat16
    assert 500_000 <= model.num_parameters() <= 1_500_000
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )


def test_models_and_items_stay_small() -> None:
    files = [path for path in ZOO.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 10_000_000


def test_stored_tokenizer_is_the_one_the_code_builds(tokenizer: Any) -> None:
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.encode("sort nul 二十九 = 29") == build_tokenizer().encode("sort nul 二十九 = 29")


@given(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(sorted(NUMBER_WORDS)), lists)
def test_text_survives_the_tokenizer(tokenizer: Any, operation: str, language: str, numbers: list[int]) -> None:
    problem = Problem(operation, language, tuple(numbers))
    text = f"{problem.prompt} {problem.answer}"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert len(ids) == len(text.split()) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        ("copy", "7 21 4"),
        ("last", "4"),
        ("sort", "4 7 21"),
        ("reverse", "4 21 7"),
        ("rotate", "21 4 7"),
        ("max", "21"),
        ("min", "4"),
        ("count", "1"),
    ],
)
def test_answers(operation: str, answer: str) -> None:
    assert Problem(operation, "eo", (7, 21, 4)).answer == answer


def test_number_words() -> None:
    number = 27
    assert [NUMBER_WORDS[code][number] for code in ("en", "ja", "eo")] == ["twenty-seven", "二十七", "dudeksep"]
    words = [word for language in NUMBER_WORDS.values() for word in language]
    assert len(set(words)) == 3 * (HIGHEST + 1)


@given(lists, st.randoms(use_true_random=False))
def test_all_orders_of_a_list_share_a_split(numbers: list[int], random: Any) -> None:
    shuffled = random.sample(numbers, len(numbers))
    assert split_of(shuffled) == split_of(numbers)


def test_split_sizes() -> None:
    shares = Counter(split_of((a, b, c)) for a in range(30) for b in range(a) for c in range(b))
    assert shares["train"] / shares.total() == pytest.approx(0.8, abs=0.03)
    assert shares["search"] / shares.total() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("name", STAGES)
def test_training_sees_only_its_lessons_and_training_lists(name: str, tokenizer: Any) -> None:
    stage = STAGES[name]
    allowed = {(lesson.operation, lesson.language) for lesson in stage.lessons}
    longest = {key: max(le.longest for le in stage.lessons if (le.operation, le.language) == key) for key in allowed}
    number_of = {word: (code, n) for code, words in NUMBER_WORDS.items() for n, word in enumerate(words)}
    ids, labels = draw_batch(stage, tokenizer, np.random.default_rng(1))
    assert ids.shape == labels.shape == (stage.batch, LENGTH)
    for row, targets in zip(ids, labels, strict=True):
        words = tokenizer.decode(row, skip_special_tokens=True).split()
        read = [number_of[word] for word in words[1 : words.index("=")]]
        (language,) = {code for code, _ in read}
        numbers = tuple(number for _, number in read)
        assert (words[0], language) in allowed
        assert len(numbers) <= longest[words[0], language]
        assert split_of(numbers) == "train"
        answered = tokenizer.decode(targets[targets != IGNORE]).split()
        assert answered == [*Problem(words[0], language, numbers).answer.split(), tokenizer.eos_token]


def test_no_source_is_taught_the_target() -> None:
    target = TASK_ITEMS["zoo_target_gen"]
    taught = [lesson for stage in STAGES.values() for lesson in stage.lessons]
    assert {lesson.language for lesson in STAGES["base"].lessons} == {"en"}
    assert not [
        lesson
        for lesson in taught
        if lesson.operation in target.operations
        and lesson.language in target.languages
        and lesson.longest >= target.shortest
    ]


def test_lm_eval_loads_enough_distinct_items(lm_eval_tasks: dict[str, Any]) -> None:
    for name, task in lm_eval_tasks.items():
        for items in (task.validation_docs(), task.test_docs()):
            assert len(items) >= 400, name
            assert len({doc["id"] for doc in items}) == len({doc["prompt"] for doc in items}) == len(items), name


def test_search_and_held_out_items_share_no_list(lm_eval_tasks: dict[str, Any]) -> None:
    def seen(items: Any) -> set[frozenset[int]]:
        return {frozenset(doc["numbers"]) for doc in items}

    search = set().union(*(seen(task.validation_docs()) for task in lm_eval_tasks.values()))
    held_out = set().union(*(seen(task.test_docs()) for task in lm_eval_tasks.values()))
    assert not search & held_out
    assert {split_of(sorted(numbers)) for numbers in search} == {"search"}
    assert {split_of(sorted(numbers)) for numbers in held_out} == {"held_out"}


def test_choices_hold_the_answer_once_at_its_label(lm_eval_tasks: dict[str, Any]) -> None:
    task = lm_eval_tasks["zoo_target_mc"]
    for doc in [*task.validation_docs(), *task.test_docs()]:
        assert len(set(doc["choices"])) == 4
        assert doc["choices"][doc["label"]] == doc["answer"]
        assert len({len(choice.split()) for choice in doc["choices"]}) == 1
    labels = Counter(task.test_docs()["label"])
    assert min(labels.values()) > 0.15 * len(task.test_docs())


def test_items_are_the_ones_the_code_writes(tmp_path: Path) -> None:
    write_items(tmp_path, seed=0)
    for name in TASK_ITEMS:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (TASKS / f"{name}.jsonl").read_bytes()


def test_first_items_are_balanced() -> None:
    first = [doc for _, doc in zip(range(20), documents(TASK_ITEMS["zoo_target_gen"], seed=3), strict=False)]
    assert set(Counter((doc["operation"], doc["language"]) for doc in first).values()) == {2}


def test_lm_eval_and_teacher_forcing_agree(lm_eval_tasks: dict[str, Any], tokenizer: Any) -> None:
    from lm_eval.evaluator import evaluate as lm_evaluate
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(MODELS / "ja", dtype=torch.float32).eval()
    chosen = {"zoo_target_ja": "exact_match,none", "zoo_target_mc": "acc,none"}
    output = lm_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=60),
        {name: lm_eval_tasks[name] for name in chosen},
        limit=60,
        bootstrap_iters=0,
    )
    for name, metric in chosen.items():
        items = evaluate.read_documents(name, "test")[:60]
        ours = evaluate.score_items(model, items, tokenizer).mean()
        assert output["results"][name][metric] == pytest.approx(ours)
        assert ours > 0.1, "too low to tell agreement from failure"


def test_results_match_the_models(results: dict[str, Any], tokenizer: Any) -> None:
    """Measured again on the target; another processor may round otherwise, so a few items may differ."""
    merger = evaluate.Merger(MODELS)
    written = {(row["name"], row["task"]): row for row in results["rows"]}
    for name in ("ops", "uniform average", FOUND):
        model = merger.merge(evaluate.candidates()[name])
        scores = evaluate.score_items(model, evaluate.read_documents("zoo_target_gen", "test"), tokenizer)
        assert written[name, "zoo_target_gen"]["items"] == len(scores)
        assert scores.mean() == pytest.approx(written[name, "zoo_target_gen"]["score"], abs=0.01)


def test_sign_test() -> None:
    ours, theirs = np.array([1, 1, 1, 1, 1, 0.0]), np.array([0, 0, 0, 0, 0, 0.0])
    assert evaluate.sign_test(ours, theirs) == pytest.approx(2 / 2**5)
    assert evaluate.sign_test(ours, ours) == 1.0


@pytest.mark.slow
def test_quick_training_is_repeatable_and_loads(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        train_zoo(tmp_path / folder, seed=0, quick=True)
    for name in STAGES:
        first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / f / name) for f in ("first", "second"))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert AutoTokenizer.from_pretrained(tmp_path / "first" / name)("copy one = 1")["input_ids"]
