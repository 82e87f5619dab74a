"""The modules whose lines are changed, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """A file of the core, and the test files or folders that are run on its mutants, the likeliest to notice first."""

    path: str
    tests: tuple[str, ...]


MODULES = (
    Module(
        "evomerge/search/final_evaluation.py", ("tests/search/test_final_evaluation.py", "tests/search/test_api.py")
    ),
    Module("evomerge/search/loop.py", ("tests/search/test_loop.py", "tests/search")),
    Module("evomerge/search/sequential_halving.py", ("tests/search/test_sequential_halving.py", "tests/search")),
    Module("evomerge/merging/engine/engine.py", ("tests/merging/engine", "tests/merging/methods/test_in_engine.py")),
    Module("evomerge/merging/engine/prepared.py", ("tests/merging/engine/test_prepared.py", "tests/merging/engine")),
    Module("evomerge/merging/methods/linear.py", ("tests/merging/methods/test_linear.py", "tests/merging/methods")),
    Module("evomerge/merging/methods/matrices.py", ("tests/merging/methods",)),
    Module("evomerge/merging/methods/selective.py", ("tests/merging/methods/test_selective.py",)),
    Module("evomerge/merging/methods/pcb.py", ("tests/merging/methods/test_pcb.py",)),
    Module(
        "evomerge/merging/sources/vocabulary.py", ("tests/merging/sources/test_vocabulary.py", "tests/merging/sources")
    ),
    Module("evomerge/merging/sources/adapters.py", ("tests/merging/sources/test_adapters.py", "tests/merging/sources")),
    Module("evomerge/merging/output/writer.py", ("tests/merging/output",)),
    Module("evomerge/strategies/nsga2.py", ("tests/strategies/test_nsga2.py", "tests/strategies")),
    Module("evomerge/strategies/genetic.py", ("tests/strategies/test_genetic.py", "tests/strategies")),
    Module("evomerge/strategies/restarts.py", ("tests/strategies/test_cma_es.py", "tests/strategies")),
    Module("evomerge/workers/ray_pool.py", ("tests/workers/test_ray_pool.py", "tests/workers")),
    Module(
        "fitness/estimation/intervals.py", ("tests/fitness/estimation/test_intervals.py", "tests/fitness/estimation")
    ),
    Module(
        "fitness/estimation/racing_rules.py",
        ("tests/fitness/estimation/test_racing_rules.py", "tests/fitness/estimation"),
    ),
    Module(
        "fitness/estimation/parent_prior.py",
        ("tests/fitness/estimation/test_parent_prior.py", "tests/fitness/estimation"),
    ),
    Module(
        "fitness/estimation/estimators.py", ("tests/fitness/estimation/test_estimators.py", "tests/fitness/estimation")
    ),
    Module(
        "fitness/estimation/evaluation_plan.py",
        ("tests/fitness/estimation/test_evaluation_plan.py", "tests/fitness/estimation"),
    ),
    Module("fitness/scoring/generation.py", ("tests/fitness/scoring/test_generation.py", "tests/fitness/scoring")),
    Module("search_spaces/recipes/recipe.py", ("tests/search_spaces", "tests/merging/engine")),
    Module("search_spaces/recipes/canonical.py", ("tests/search_spaces", "tests/merging/engine")),
    Module("search_spaces/spaces/coefficients.py", ("tests/search_spaces/spaces", "tests/strategies")),
)
