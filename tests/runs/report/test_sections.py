"""What the sections of a report compute from a run."""

import json

import numpy as np
import pytest

from evomerge.runs.held_out import FILE, HeldOut
from evomerge.runs.report import coefficients, convergence, final_table, front, items, lineage, population
from evomerge.runs.report.contents import read
from evomerge.runs.report.html import Section, render
from evomerge.runs.result import Row
from evomerge.runs.verdict import Comparison, Verdict
from fitness.items import ItemText
from fitness.results import Evaluation
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.fields import PathLayer
from search_spaces.recipes.layer_path import path_recipe
from tests.runs.report.conftest import SECONDS, scored
from tests.runs.report.conftest import items as ids
from tests.runs.report.pages import Page


def found_hash(contents):
    return contents.recipe_hash(contents.rows["found"])


@pytest.fixture
def staged(writer):
    """Return a run of a founder, two steps, a sample, and the sample asked again, after the sources were scored."""
    run = writer()
    run.reference("parent", "base", scored(0.5, ids(10)))
    run.candidate(scored(0.25, ids(4)), kind="founder")
    for loss in (1.5, 0.5):
        run.candidate(scored(0, ids(3), status="step", objectives=(-loss,)), kind="gradient")
    run.candidate(scored(0.75, ids(4)), parents=(0,), recipe="child")
    run.candidate(scored(0.5, ids(6)), kind="again", recipe="child")
    run.candidate(scored(0.75, ids(4)), recipe="child", cached=True)
    return read(run.close())


def test_the_course_counts_every_answer_once(staged):
    points = convergence.points(staged)
    assert [point.answers for point in points] == [14, 17, 20, 24, 26, 26]
    assert [point.score for point in points if point.is_step] == [1.5, 0.5]
    assert [point.best for point in points] == [0.25, 0.25, 0.25, 0.75, 0.5, 0.5]
    assert [point.seconds for point in points] == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]


def test_stages_follow_each_other(staged):
    spans = convergence.spans(staged, convergence.points(staged))
    assert [(span.stage, span.answers) for span in spans] == [
        ("sources", 10),
        ("founders", 14),
        ("steps", 20),
        ("candidates", 26),
    ]


def test_costs_add_up_to_the_answers_of_the_run(staged):
    found = Section.of(staged).costs
    assert {stage: (cost.requests, cost.answers) for stage, cost in found.items()} == {
        "sources": (1, 10),
        "founders": (1, 4),
        "steps": (2, 6),
        "candidates": (2, 6),
    }
    assert sum(cost.answers for cost in found.values()) == staged.history.item_evaluations
    assert (found["steps"].score, found["steps"].merge, found["steps"].wait) == (5.0, 2.5, 0.5)


def test_of_many_candidates_some_are_drawn_and_every_record_is():
    bests = np.maximum.accumulate(np.random.default_rng(0).random(10_000))
    points = [
        convergence.Point(at, "candidates", "sample", at, float(at), 0.5, 0.1, float(best), 0.1)
        for at, best in enumerate(bests)
    ]
    kept = convergence.thinned(points)
    assert len(kept) < 1_600 and kept[-1] is points[-1]
    assert {point.best for point in kept} == set(bests.tolist())


def test_coefficients_are_means_over_the_tensors_of_a_module(writer):
    run = writer()
    run.candidate(scored(0.5, ids(4)))
    contents = read(run.finish().close())
    found = {
        (cell.module, cell.place, cell.model): cell.value
        for cell in coefficients.cells(contents, contents.found)
        if cell.parameter == "weight"
    }
    assert found["attention", "1", "ops"] == 0.25
    assert [found["mlp", str(layer), "ops"] for layer in range(3)] == [0.5, 1.0, 1.5]
    assert found["norms", "2", "ops"] == 1.5
    assert found["outside the layers", "embed_tokens", "ja"] == -0.5
    assert coefficients.varying(coefficients.cells(contents, contents.found)) == ["weight"]
    assert ("lambda", 0.9, 0.9) in coefficients.ranges(coefficients.cells(contents, contents.found))
    assert "lambda is 0.9 everywhere." in Page(render(contents.path)).text


def test_a_path_names_the_layers_in_order(writer):
    run = writer()
    run.candidate(scored(0.5, ids(4)))
    run.finish()
    layers = [PathLayer("/models/ops", 0), PathLayer("/models/ja", 2, 0.5), PathLayer("/models/ops", 2)]
    (run.path / "rows.json").unlink()
    (run.path / "best.yaml").write_text(mergekit_yaml.dump(path_recipe(layers, "/models/base", 3)))
    contents = read(run.close())
    shown = coefficients.drawn(contents)
    found = coefficients.path(contents, shown.recipe)
    assert [(one.model, one.layer, one.scale) for one in found] == [("ops", 0, 1), ("ja", 2, 0.5), ("ops", 2, 1)]
    assert shown.of == "the found recipe" and coefficients.unchanged(contents) == ""
    assert [row["position"] for row in Page(render(contents.path)).values("path")] == [0, 1, 2]


def test_a_source_is_called_so_and_not_drawn_as_a_path(writer):
    run = writer()
    run.candidate(scored(0.5, ids(4)))
    run.finish()
    (run.path / "rows.json").unlink()
    whole = path_recipe([PathLayer("/models/ops", at) for at in range(3)], "/models/ops", 3)
    (run.path / "best.yaml").write_text(mergekit_yaml.dump(whole))
    page = Page(render(run.close()))
    assert "It is ops, unchanged" in page.text and "path" not in page.data["figures"]


def test_distances_are_those_of_all_pairs():
    points = np.random.default_rng(0).random((7, 5))
    pairs = [np.square(a - b).mean() for at, a in enumerate(points) for b in points[at + 1 :]]
    assert population.mean_distance(points) == pytest.approx(np.sqrt(np.mean(pairs)))


def test_a_generations_spread_has_its_scores(writer):
    run = writer()
    for generation in (0, 1):
        for value in (0.25, 0.5, 1.0):
            run.candidate(scored(value, ids(4)), generation=generation)
    found = population.spreads(read(run.close()))
    assert [(one.generation, one.candidates, one.low, one.median, one.high) for one in found] == [
        (0, 3, 0.25, 0.5, 1.0),
        (1, 3, 0.25, 0.5, 1.0),
    ]


def test_the_archive_is_led_through_the_results(writer):
    run = writer(strategy={"kind": "m2n2", "archive": 2, "warm_up": 0})
    answers = [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    for right in answers:
        scores = np.array(right, np.float32)
        run.candidate(Evaluation("ok", (float(scores.mean()),), (0.1,), ids(4), scores, SECONDS))
    found = population.niches(read(run.close()))
    assert [(one.members, one.best, one.together) for one in found] == [
        (1, 0.5, 0.5),
        (2, 0.5, 0.75),
        (2, 0.5, 1),
        (2, 0.5, 1),
    ]


def test_the_grid_is_led_through_the_results(writer):
    run = writer(
        strategy={"kind": "map_elites", "cells": 4, "warm_up": 0},
        fitness={"tasks": [{"task": "a", "weight": 1.0}, {"task": "b", "weight": 1.0}]},
    )
    for a, b in ((1.0, 0.0), (0.5, 0.5), (0.5, 0.5)):
        asked = ids(4, "a") + ids(4, "b")
        scores = np.repeat(np.array([a, b], np.float32), 4)
        run.candidate(Evaluation("ok", ((a + b) / 2,), (0.1,), asked, scores, SECONDS))
    found = population.grid(read(run.close()))
    assert [moment.members for moment in found.moments] == [1, 2, 2]
    assert [(one.x, one.y, one.quality, one.candidate, one.file) for one in found.elites] == [
        (0.75, 0.0, 0.5, 0, "1.yaml"),
        (0.5, 0.5, 0.5, 1, "2.yaml"),
    ]
    assert found.axes == ("a", "b")
    assert "grid" in Page(render(run.path)).data["figures"]


@pytest.mark.parametrize(("strategy", "step"), [({"kind": "cycleqd", "cells": 4}, 0.25), ({"kind": "m2n2"}, 0.1)])
def test_other_archives_have_cells_of_scores_too(writer, strategy, step):
    """Those of CycleQD as it is set, of M2N2 ten by task."""
    run = writer(strategy=strategy, fitness={"tasks": [{"task": "a", "weight": 1.0}, {"task": "b", "weight": 1.0}]})
    run.candidate(Evaluation("ok", (0.5,), (0.1,), ids(1, "a") + ids(1, "b"), np.ones(2, np.float32), SECONDS))
    found = population.grid(read(run.close()))
    assert found.step == step and [(one.x, one.y) for one in found.elites] == [(pytest.approx(1 - step),) * 2]


def test_with_one_task_there_are_no_cells(writer):
    run = writer(strategy={"kind": "m2n2", "archive": 2})
    run.candidate(scored(0.5, ids(4)))
    assert population.grid(read(run.close())) is None


@pytest.fixture
def several(writer):
    """Return a run with four candidates and two objectives, two of them on the front."""
    run = writer(fitness={"tasks": [{"task": "a", "weight": 1.0}, {"task": "b", "weight": 1.0}]})
    for values in ((0.25, 0.75), (0.75, 0.25), (0.25, 0.25), (0.5, 0.25)):
        run.candidate(scored(0.5, ids(4), objectives=values, standard_errors=(0.1, 0.2), shares=(0.5, 0.5)))
    return run.close()


def test_the_front_is_numbered_by_the_first_objective_and_has_its_volume(several):
    found = front.front(read(several))
    assert [(one.number, one.candidate, one.values) for one in found.members] == [
        (1, 1, (0.75, 0.25)),
        (2, 0, (0.25, 0.75)),
    ]
    assert found.volume == pytest.approx(0.25 * 0.75 + 0.5 * 0.25)
    index = json.loads(front.index(found))
    assert index["hypervolume"] == found.volume and index["reference"] == {"a": 0.0, "b": 0.0}
    assert [one["file"] for one in index["recipes"]] == ["1.yaml", "2.yaml"]
    page = Page(render(several))
    assert [row["number"] for row in page.values("front") if "number" in row] == [1, 2]
    (table,) = (table for table in page.tables if table[0][0] == "number")
    assert table[1][:4] == ["1", "0.750 ± 0.100", "0.250 ± 0.200", "1"]


def test_one_objective_has_a_front_of_one_and_no_figure(small):
    found = front.front(read(small))
    assert [one.candidate for one in found.members] == [1] and found.tasks == ("t",)
    assert "front" not in Page(render(small)).data["figures"]


def test_items_gained_and_lost_have_their_texts(writer):
    run = writer()
    run.candidate(scored(0.5, ids(4)))
    rows = [Row("found", "found", "t", 0.5, 0.2, 0.8, 4, 1.0), Row("ops", "source", "t", 0.5, 0.2, 0.8, 4, 1.0)]
    run.finish(rows, Verdict("indistinguishable", "found", "Equal.", (Comparison("ops", 0.0, 1.0),)))
    answers = {"found": ([1, 1, 0, 0], ("A", "1", "C", "D")), "ops": ([1, 0, 1, 0], ("A", "0", "R", "D"))}
    for name, (right, given) in answers.items():
        scores = np.array(right, np.float32)
        run.reference("held_out", name, Evaluation("ok", (0.5,), (0.1,), ids(4), scores, SECONDS, answers=given))
    texts = {
        item: ItemText(f"question {at}?", ("R",), ("no", "<b>yes</b>") if at == 1 else ())
        for at, item in enumerate(ids(4))
    }
    (run.path / FILE).write_text(HeldOut({name: [name] for name in answers}, texts).to_json())
    changes = items.changes(read(run.close()))
    assert (changes.source, changes.gains, changes.losses, changes.same) == ("ops", 1, 1, 2)
    assert changes.gained == [items.Change("t/test/1", "question 1?", "R", "no", "<b>yes</b>", 0.0, 1.0)]
    assert changes.lost == [items.Change("t/test/2", "question 2?", "R", "R", "C", 1.0, 0.0)]
    page = Page(render(run.path))
    assert page.row("t/test/1") == ["t/test/1", "question 1?", "R", "no 0", "<b>yes</b> 1"]
    assert "<b>yes" not in page.markup


def test_the_lineage_goes_back_to_the_first_parents(writer):
    run = writer()
    for value, parents in ((0.25, ()), (0.5, ()), (0.5, (0, 1)), (0.25, (1,)), (0.75, (2, 3)), (0.5, (4,))):
        run.candidate(scored(value, ids(4)), parents=parents)
    found = lineage.lineage(read(run.close()))
    assert [(one.candidate, one.distance) for one in found] == [(4, 0), (2, 1), (3, 1), (0, 2), (1, 2)]
    edges = [row for row in Page(render(run.path)).values("lineage") if "to" in row]
    assert sorted((row["candidate"], row["to"]) for row in edges) == [(2, 0), (2, 1), (3, 1), (4, 2), (4, 3)]


def test_a_chain_of_steps_is_listed_and_not_drawn(writer):
    run = writer()
    for before in ((), (0,), (1,)):
        run.candidate(scored(0, ids(3), status="step", objectives=(-1.0,)), kind="gradient", parents=before)
    run.candidate(scored(0.5, ids(4)), kind="mean", parents=(2,))
    page = Page(render(run.close()))
    assert page.row("2") == ["2", "1", "gradient", "a step", "1"]
    assert "lineage" not in page.data["figures"]


def test_without_parents_there_is_a_sentence(small):
    assert "No candidate has recorded parents" in Page(render(small)).text


def test_search_scores_are_those_of_a_finalist(writer):
    run = writer()
    run.candidate(scored(0.5, ids(4)))
    run.finish()
    name = found_hash(read(run.path))
    run.candidate(scored(1.0, ids(4)), recipe=name)
    assert final_table.gaps(read(run.path))[0].search == 1.0
    run.reference("confirm", name, scored(0.6, ids(10)[4:], objectives=(), standard_errors=()))
    (gap,) = final_table.gaps(read(run.close()))
    assert (gap.name, gap.search, gap.items, gap.held_out) == ("found", pytest.approx(4 / 6), 6, 0.75)


def test_an_ensemble_and_unknown_intervals_are_rows_like_others(writer):
    run = writer()
    run.candidate(scored(0.5, ids(4)))
    rows = [
        Row("found", "found", "t", 0.5, float("-inf"), float("inf"), 1, 1.0),
        Row("ensemble of 3 models", "ensemble", "t", 0.6, 0.2, 0.8, 4, 1.0),
        Row("ops", "source", "t", 0.5, 0.2, 0.8, 4, 1.0),
    ]
    page = Page(render(run.finish(rows).close()))
    assert page.row("ensemble of 3 models")[1] == "0.600"
    assert page.row("found")[2] == "unknown to unknown"
    assert "An ensemble is not a recipe" in page.text


@pytest.mark.slow
def test_ten_thousand_candidates_with_hundreds_of_genes_make_a_page_of_a_few_megabytes(writer, monkeypatch):
    run = writer(strategy={"kind": "m2n2", "archive": 20, "warm_up": 0})
    run.run._db.execute("PRAGMA synchronous = OFF")
    monkeypatch.setattr(np.random, "default_rng", lambda seed, make=np.random.default_rng: Genes(make(seed)))
    for number in range(10_000):
        run.candidate(scored(0.5 + 0.4 * np.sin(number), ids(20)), generation=number // 20, parents=(number // 2,))
    page = render(run.close())
    assert len(page.encode()) < 5_000_000


class Genes:
    """A generator that draws 300 numbers where two are asked for."""

    def __init__(self, rng):
        self._rng = rng

    def random(self, count):
        return self._rng.random(300)
