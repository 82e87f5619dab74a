"""The example of a fitness function of one's own runs as its page says."""

from pathlib import Path

from evomerge.runs.result import Result

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_fitness"


def test_it_searches_and_reports_held_out_scores(tmp_path, evomerge):
    printed = evomerge("search", EXAMPLE / "search.yaml", "--run", "run", cwd=tmp_path)
    result = Result.read(tmp_path / "run" / "result.json")
    assert {row.task for row in result.held_out} == {"likelihood"}
    assert all(0 <= row.low <= row.score <= row.high <= 1 for row in result.held_out)
    assert result.verdict.sentence in printed


def test_the_page_quotes_the_example():
    page = (EXAMPLE.parent.parent / "docs" / "own_fitness.md").read_text(encoding="utf-8")
    file = (EXAMPLE / "search.yaml").read_text(encoding="utf-8")
    for line in ("kind: python", "function: score.py:likelihood", "function_items: ITEMS"):
        assert line in page and line in file
