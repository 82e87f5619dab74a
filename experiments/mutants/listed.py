"""Changes of one line that once went unnoticed: each must be killed."""

from __future__ import annotations

FINAL = "evomerge/search/final_evaluation.py"
ENGINE = "evomerge/merging/engine/engine.py"
PREPARED = "evomerge/merging/engine/prepared.py"
MATRICES = "evomerge/merging/methods/matrices.py"
LINEAR = "evomerge/merging/methods/linear.py"
INTERVALS = "fitness/estimation/intervals.py"
RACING = "fitness/estimation/racing_rules.py"
INPUTS = "fitness/estimation/inputs.py"
POSTERIOR = "fitness/estimation/posterior.py"
PLAN = "fitness/estimation/evaluation_plan.py"
ESTIMATORS = "fitness/estimation/estimators.py"
LOOP = "evomerge/search/loop.py"
NSGA2 = "evomerge/strategies/nsga2.py"
GENETIC = "evomerge/strategies/genetic.py"
RESTARTS = "evomerge/strategies/restarts.py"
RECIPE = "search_spaces/recipes/recipe.py"
CANONICAL = "search_spaces/recipes/canonical.py"
COEFFICIENTS = "search_spaces/spaces/coefficients.py"
SELECTIVE = "evomerge/merging/methods/selective.py"
PCB = "evomerge/merging/methods/pcb.py"
VOCABULARY = "evomerge/merging/sources/vocabulary.py"
ADAPTERS = "evomerge/merging/sources/adapters.py"
RAY = "evomerge/workers/ray_pool.py"
ATOMIC = "evomerge/files/atomic.py"
GENERATION = "fitness/scoring/generation.py"

LISTED: tuple[tuple[str, str, str], ...] = (
    (
        FINAL,
        "asked = {item for identity in best for item in history.evaluation(identity).items}",
        "asked = set()",
    ),
    (FINAL, "return len(self.history.answers(self._hash(entry), confirmed=False)) ==", "return -1 =="),
    (FINAL, "entries += [mean] if mean is not None else []", "entries += []"),
    (
        FINAL,
        "np.lexsort((-crowding_by_front(points, rank), rank))",
        "np.lexsort((rank, -crowding_by_front(points, rank)))",
    ),
    (PREPARED, "return prepare, base, seed, *(", "return prepare, base, *("),
    (ENGINE, "plan.name, recipe.seed, recipe.calibration_text,", "plan.name, recipe.calibration_text,"),
    (ENGINE, "recipe.seed, recipe.calibration_text, recipe.adapters,", "recipe.seed, recipe.adapters,"),
    (PREPARED, "key = (*key, self._statistics.key(method, plan, at, recipe))", "pass"),
    (MATRICES, ".mul_(lambda_ / len(deltas))", ".mul_(lambda_)"),
    (INTERVALS, "weight / np.size(a) * (np.asarray(a", "weight * (np.asarray(a"),
    (INTERVALS, "return float((extreme + 1) / (RESAMPLES + 1))", "return float(extreme / RESAMPLES)"),
    (RACING, "error_C * math.sqrt(1 - answered), 0.0", "error_C * math.sqrt(1 + answered), 0.0"),
    (RACING, "error_C * math.sqrt(1 - correlation)  # of", "error_C  # of"),
    (INPUTS, "self.evaluated[-self.learn_from :]", "self.evaluated[: self.learn_from]"),
    (POSTERIOR, "np.minimum(largest_K, known_K + spread_KU.sum(1))", "known_K + spread_KU.sum(1)"),
    (PLAN, "if new >= LEARN_EVERY or (new and not self.learned):", "if new >= LEARN_EVERY:"),
    (ESTIMATORS, "estimate.standard_error * math.sqrt(open_share) if", "estimate.standard_error if"),
    (ESTIMATORS, "part.standard_error) ** 2 * (1 - inside_S.size / size)", "part.standard_error) ** 2"),
    (LOOP, "if not told.cached and ", "if "),
    (NSGA2, "np.lexsort((-distance, rank))", "np.lexsort((distance, rank))"),
    (GENETIC, "math.ceil(self.config.elite * self.population)", "math.floor(self.config.elite * self.population)"),
    (RESTARTS, "self._used[self._regime] += evaluations", "self._used[self._regime] += 1"),
    (RECIPE, "base_model=renamed(part.base_model),", "base_model=part.base_model,"),
    (COEFFICIENTS, "return 1.0 / total if total else 1.0", "return 1.0"),
    (CANONICAL, "else float(value) + 0.0", "else float(value)"),
    (LINEAR, "return total if abs(total) >= SMALLEST_SUM", "return total if total >= SMALLEST_SUM"),
    (SELECTIVE, "middle + 1.5 * (high", "middle + 1.4 * (high"),
    (VOCABULARY, "row if row < own_rows else MISSING", "row"),
    (VOCABULARY, "if row >= rows_of(source):", "if False:"),
    (ADAPTERS, "values if pair is None else self._merged(pair, values)", "values"),
    (RAY, "slot.deaths = 0  # the candidate is the cause", "pass"),
    (RAY, "return task.avoid is not slot or len(self._slots) == 1", "return task.avoid is not slot"),
    (
        RAY,
        "            else:\n                self._queue.appendleft(task)",
        "            else:\n                self._queue.append(task)",
    ),
    (ATOMIC, "temporary.chmod(mode)", "pass"),
    (GENERATION, "min(len(prompt) for prompt in prompts) - 1)", "min(len(prompt) for prompt in prompts))"),
    (PCB, "PERCENTILE = 0.01", "PERCENTILE = 1e-3"),
)
"""Module, part of its text as it is, and as it becomes. The text occurs once."""
