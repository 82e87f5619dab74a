"""Searches on real Ray: the same result as inline, whatever happens to the workers."""

import logging
from contextlib import closing

import pytest

from evomerge.config.load import load
from evomerge.runs.history import RunHistory
from evomerge.runs.run import Run
from evomerge.search.loop import Search
from evomerge.search.problem import Problem
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.scoring_workers import start_pool
from tests.workers.searches import candidates, write_config


def search(folder, name, workers):
    """Search in this process; return what became of each candidate, and the answers and scores of one finalist."""
    write_config(folder / f"{name}.yaml", workers)
    problem = Problem(load(folder / f"{name}.yaml"))
    with (
        closing(start_pool(problem)) as pool,
        Run.create(folder / name, problem.resolved().to_yaml(), problem.environment()) as run,
    ):
        scorer = RecordedScorer(run, RunHistory(), pool)
        state = Search(run, problem.space, problem.strategy(), problem.config.budget, problem.evaluation_plan(scorer))
        state.search(pool)
        parent = scorer.score("parent", problem.sources()[1], problem.search_items)
        voter = scorer.vote(problem.sources()[1], problem.held_out_items)
    assert len(voter.answers) == len(voter.items)
    return candidates(folder / name), parent.scores.tolist(), voter.answers, voter.scores.tolist()


@pytest.mark.slow
def test_two_ray_workers_find_what_one_inline_worker_finds(tmp_path, caplog, capfd):
    inline = search(tmp_path, "inline", {"threads": 1})
    with caplog.at_level(logging.INFO, "evomerge"):
        ray = search(tmp_path, "ray", {"kind": "ray", "count": 2})
    assert ray == inline
    assert {line.split(":")[0] for line in caplog.messages if "is ready" in line} <= {
        "worker 0 is ready",
        "worker 1 is ready",
    }
    assert capfd.readouterr() == ("", "")  # Ray's own noise stays out of the terminal
