"""The modules whose lines are changed, and the folders with the tests that may notice."""

from __future__ import annotations

MODULES = (
    "evomerge/search/final_evaluation.py",
    "evomerge/search/loop.py",
    "evomerge/search/sequential_halving.py",
    "evomerge/merging/engine/engine.py",
    "evomerge/merging/engine/prepared.py",
    "evomerge/merging/methods/linear.py",
    "evomerge/merging/methods/matrices.py",
    "evomerge/merging/methods/selective.py",
    "evomerge/merging/methods/pcb.py",
    "evomerge/merging/sources/vocabulary.py",
    "evomerge/merging/sources/adapters.py",
    "evomerge/merging/output/writer.py",
    "evomerge/strategies/nsga2.py",
    "evomerge/strategies/genetic.py",
    "evomerge/strategies/restarts.py",
    "evomerge/workers/ray_pool.py",
    "fitness/estimation/intervals.py",
    "fitness/estimation/racing_rules.py",
    "fitness/estimation/parent_prior.py",
    "fitness/estimation/estimators.py",
    "fitness/estimation/evaluation_plan.py",
    "fitness/scoring/generation.py",
    "search_spaces/recipes/recipe.py",
    "search_spaces/recipes/canonical.py",
    "search_spaces/spaces/coefficients.py",
)

FOLDERS = (
    "tests/config",
    "tests/files",
    "tests/fitness",
    "tests/merging",
    "tests/runs",
    "tests/search",
    "tests/search_spaces",
    "tests/strategies",
    "tests/workers",
)
"""Folders of the fast suite whose tests run in the process of pytest, so that the lines they execute can be traced."""
