"""What a user is told to type after a search works as it is printed."""

import pytest

from evomerge.cli.export import export
from evomerge.cli.printing import console, print_next
from evomerge.runs.report.commands import commands
from evomerge.runs.report.contents import read
from evomerge.runs.report.final_table import headline
from tests.runs.report.conftest import items, scored

MERGE, UNRELATED = "evomerge merge recipe.yaml merged", "evomerge merge recipe.yaml merged --allow-unrelated"


@pytest.mark.parametrize(("given", "merge"), [({}, MERGE), ({"allow_unrelated": True}, UNRELATED)])
def test_a_merge_is_allowed_what_its_search_was(writer, capsys, given, merge):
    run = writer("a run", **given)
    run.candidate(scored(0.5, items(4)))
    path = run.finish().close()
    wanted = [f"evomerge export '{path}' -o recipe.yaml", merge, f"evomerge evaluate merged --like '{path}'"]
    assert list(headline(read(path)).commands) == wanted
    print_next(console(), path)
    assert capsys.readouterr().out.split("\n  ")[1:] == [*wanted[:2], f"{wanted[2]}\n"]
    export(path, path / "recipe.yaml", None, "evomerge", False)
    assert capsys.readouterr().err.endswith(f"next: {merge.replace('recipe.yaml', repr(str(path / 'recipe.yaml')))}\n")


@pytest.mark.parametrize(
    ("function", "items_", "again"),
    [("score.py:score", "ITEMS", True), ("score.py:score", None, False), ("score.py:score", "<given>", False),
     ("__main__:score", "score.py:ITEMS", False), ("score.py:<lambda>", "score.py:ITEMS", False)],
)  # fmt: skip
def test_a_function_that_the_command_line_cannot_call_is_not_offered(tmp_path, function, items_, again):
    fitness = {"kind": "python", "function": function, "function_items": items_}
    assert len(commands(tmp_path, {"fitness": fitness})) == (3 if again else 2)
