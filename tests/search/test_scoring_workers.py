"""Workers of a search: made here from the opened models, or in another process, which checks that all is the same."""

import pickle
from functools import partial
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from evomerge.config.load import load
from evomerge.merging.engine.placement import Share
from evomerge.search.problem import Problem
from evomerge.search.scoring_workers import local_worker, open_worker, start_pool
from evomerge.workers.base import Request, WorkerError, WorkerSettings
from evomerge.workers.inline import InlinePool
from evomerge.workers.ray_actor import Actor
from evomerge.workers.registry import WORKERS, register_workers
from search_spaces.registry import registering
from tests.workers.searches import write_config

SETTINGS = WorkerSettings("cpu", threads=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("workers") / "search.yaml"
    write_config(file, {"threads": 1})
    return file


@pytest.fixture(scope="module")
def problem(file):
    return Problem(load(file))


@pytest.fixture(scope="module")
def sent(problem):
    """Return what a driver sends to its workers: contents of the search file, and its environment."""
    return problem.resolved().model_dump(mode="json"), problem.environment()


def request_of(problem):
    return Request(problem.space.decode(problem.space.start), tuple(problem.subset))


def test_a_worker_elsewhere_scores_as_one_here(problem, sent):
    start = pickle.loads(pickle.dumps(partial(open_worker, *sent, SETTINGS, Share())))
    actor = Actor(start)
    assert actor.open().endswith(", cpu") and actor.heartbeat() == "idle, 0 candidates scored"
    found = actor.evaluate(request_of(problem))
    expected = local_worker(problem).ready().evaluate(request_of(problem))
    assert found.status == expected.status == "ok"
    assert np.array_equal(found.scores, expected.scores)
    assert actor.heartbeat() == "idle, 1 candidate scored"


def other_sources(environment):
    return {"sources": environment.sources | {"ja": {}}}


def other_tokenizer(environment):
    return {"tokenizers": environment.tokenizers | {"base": {"tokenizer.json": "0"}}}


def other_items(environment):
    ((name, task),) = environment.items.items()
    words = task.search.prompts.split()
    search = task.search.model_copy(update={"prompts": " ".join(["0" * 8, *words[1:]])})
    return {"items": {name: task.model_copy(update={"search": search})}}


def other_version(environment):
    return {"evomerge": "9.9"}


def other_dtype(environment):
    return {"compute_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_sources, r"models\.ja: \S+ differs from the driver's; put the same files there"),
        (other_tokenizer, r"models\.base: tokenizer\.json differs from the driver's"),
        (other_items, r"fitness\.tasks: task \w+: the prompt of search item \S+ has changed, compared with the driver"),
        (other_dtype, r"workers: forward passes computed in bfloat16 and would in float32 now"),
        (other_version, r"evomerge is .* there and 9\.9 at the driver"),
    ],
)
def test_a_worker_whose_inputs_differ_does_not_start(sent, change, words):
    values, environment = sent[0], sent[1].model_copy(update=change(sent[1]))
    with pytest.raises(WorkerError, match=rf"^a worker cannot start \(process \d+ on .*\): {words}"):
        Actor(partial(open_worker, values, environment, SETTINGS, Share())).open()


class Undo(Exception):
    """Raised at the end of a block to take its registrations back."""


def test_a_worker_kind_of_another_package_scores_a_search(file, problem):
    with pytest.raises(Undo), registering("other-package"):

        @register_workers
        class CountingConfig(BaseModel):
            """Workers of a test."""

            model_config = ConfigDict(frozen=True, extra="forbid")

            kind: Literal["counting"] = "counting"
            threads: int = 1

            def settings(self):
                return WorkerSettings("cpu", threads=self.threads)

            def start(self, factory):
                return InlinePool(factory.here(self.settings(), Share()))

        config = load(file, ["workers={kind: counting, threads: 1}"])
        assert (config.workers.threads, WORKERS.origin("counting")) == (1, "other-package")
        pool = start_pool(Problem(config))
        pool.submit(3, request_of(problem))
        ((tag, evaluation),) = pool.wait()
        assert (tag, evaluation.status) == (3, "ok")
        raise Undo
    assert "counting" not in WORKERS


def test_a_worker_kind_needs_a_way_to_start():
    class NoStart(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")
        kind: Literal["lazy"] = "lazy"

        def settings(self):
            return SETTINGS

    with pytest.raises(ValueError, match="a worker kind needs a method `start`"):
        register_workers(NoStart)
