"""A cluster for the Ray pool that is told when its workers die, hang, join or leave; its clock passes by waiting."""

import numpy as np

from evomerge.workers.ray_pool import WorkerDied
from fitness.results import Evaluation

ITEMS = ("t/test/0", "t/test/1")
SECONDS = {"merge": 0.25, "score": 0.5, "wait": 0.0}


def scored(value):
    return Evaluation("ok", (value,), (0.1,), ITEMS, np.full(2, value, np.float32), SECONDS)


class Death(str):
    """What a worker's reference holds when it died, with the reason."""


class Clock:
    """Seconds that pass when somebody waits."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class FakeCluster:
    """Workers that answer at once: `script` maps a recipe to what its attempts give, then it is scored.

    `Death` kills the worker, "hang" never answers, anything else is the evaluation.
    """

    def __init__(self, clock, room=2, script=None):
        self.clock, self._room, self.script = clock, room, script or {}
        self.results, self.where, self.killed, self.closed, self.count = {}, [], [], 0, 0
        self.takes = 0.0  # seconds that handing out a recipe takes
        self.starts = []  # what further starts give instead of a worker

    def room(self):
        return self._room

    def start(self, number):
        self.count += 1
        return (number, self.count), self._reference(self.starts.pop(0) if self.starts else "here")

    def evaluate(self, worker, request):
        recipe = request.recipe
        self.where.append((recipe, worker[0]))
        self.clock.now += self.takes
        attempts = self.script.get(recipe, [])
        return self._reference(attempts.pop(0) if attempts else scored(float(recipe)))

    def heartbeat(self, worker):
        return self._reference("busy")

    def wait(self, references, timeout):
        ready = [reference for reference in references if self.results.get(reference) != "hang"]
        if not ready:
            self.clock.now += timeout
        return ready

    def result(self, reference):
        result = self.results.pop(reference)
        if isinstance(result, Death):
            raise WorkerDied(result)
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self, worker):
        self.killed.append(worker)

    def close(self):
        self.closed += 1

    def _reference(self, result):
        reference = object()
        self.results[reference] = result
        return reference
