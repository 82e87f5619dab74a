"""The identity of tasks: files of functions, few-shot examples that give nothing away, and overlaps."""

import sys

from fitness.tasks.code import file_hashes, files_behind, functions_in

MODULE = """
import os
from pathlib import Path
from . import beside
from package.inner import thing
import own_module
TEXT = open(os.path.join(os.path.dirname(__file__), "data", "words.txt")).read()


def f(doc):
    return (Path(__file__).parent / "data" / "more.txt").read_text()
"""


def test_the_files_of_a_function(tmp_path, monkeypatch):
    """Its module, what that imports from beside it or from the user's folders, and the data that it names."""
    folder = tmp_path / "tasks"
    (folder / "package").mkdir(parents=True)
    (folder / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    files = {
        "tasks/metrics.py": MODULE,
        "tasks/beside.py": "from beside2 import x",
        "tasks/beside2.py": "x = 1",
        "tasks/package/__init__.py": "",
        "tasks/package/inner.py": "thing = 1",
        "tasks/data/words.txt": "a",
        "tasks/data/more.txt": "b",
        "tasks/not_used.py": "",
        "elsewhere/own_module.py": "import json",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    __import__("own_module")
    try:
        module = {"__file__": str(folder / "metrics.py"), "open": open}
        code = MODULE.replace("from . import beside", "").replace("from package.inner import thing", "")
        exec(compile(code, str(folder / "metrics.py"), "exec"), module)
        found = file_hashes([module["f"]])
        (folder / "beside2.py").write_text("x = 2")
        after = file_hashes([module["f"]])
    finally:
        sys.modules.pop("own_module")
    assert (
        set(found)
        == set(after)
        == {
            "metrics.py",
            "beside.py",
            "beside2.py",
            "package/__init__.py",
            "package/inner.py",
            "data/words.txt",
            "data/more.txt",
            "own_module.py",
        }
    )
    assert {name for name in found if found[name] != after[name]} == {"beside2.py"}


def test_installed_functions_have_versions_instead():
    from lm_eval.api.metrics import mean

    assert file_hashes([mean, len, print]) == {}


def test_our_own_packages_have_a_version_instead_wherever_they_lie(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("import evomerge.cli.main\nimport fitness.items\nfrom search_spaces.recipes import recipe\n")
    assert set(files_behind(file)) == {"own.py"}
    assert file_hashes([files_behind]) == {}


def test_functions_are_found_at_any_depth():
    assert list(functions_in({"a": [1, {"b": len}], "c": (print, "text")})) == [len, print]


def questions(count, start=0):
    return [
        {"question": f"w{at} w{at + 1} =", "single": ["w1", "w2", "w3", "w4"], "gold": at % 4, "answer": "w1"}
        for at in range(start, start + count)
    ]


def in_other_words(rows):
    return [row | {"question": row["question"].upper().replace(" =", " , = !")} for row in rows]


def test_no_prompt_shows_a_held_out_item_in_any_spelling(toys):
    """Counted over all prompts: half of the documents for examples are held-out items, spelt otherwise."""
    held_out = questions(10)
    toys.write("toy", "mc", docs={
        "train": [*in_other_words(held_out), *questions(10, 100)],
        "validation": questions(10, 200),
        "test": held_out,
    }, fewshot_split="train")  # fmt: skip
    suite = toys.suite("toy", num_fewshot=4)
    task = suite.task("toy")
    shown = 0
    for side in (suite.pool.search, suite.pool.held_out):
        for item in side["toy"]:
            for request in task.requests(item):
                examples = request.context.rpartition("\n\n")[0].casefold()
                shown += sum(row["question"].removesuffix(" =") in examples for row in held_out)
    assert shown == 0
    assert list(suite.overlaps()) == []  # what is not shown overlaps with nothing


def test_overlaps_are_counted_per_task(toys):
    search = questions(10, 200)
    toys.write("toy", "mc", docs={
        "train": in_other_words(search[:3]) + questions(6, 100),
        "validation": search,
        "test": [*questions(5), *in_other_words(search[4:6])],
    }, fewshot_split="train")  # fmt: skip
    suite = toys.suite("toy", num_fewshot=8)
    for side in (suite.pool.search, suite.pool.held_out):
        for item in side["toy"]:
            suite.task("toy").requests(item)
    first, second = suite.overlaps()
    assert first.startswith("toy: 2 held-out items are nearly equal to search items") and "toy/test/5" in first
    assert second.startswith("toy: 3 search items are nearly equal to few-shot examples")
