"""Search strategies with an ask/tell interface: numpy only, no torch, no I/O, resumable by replay.

A strategy is one file with a config (`kind`, `objectives`, `resolved`, `build`) and a `Strategy`; to add one, write
the file, add its config to `AnyStrategyConfig`, and let `evomerge.testing.StrategySuite` test it. What `auto` means
follows from the number of genes; for `staged`, whose stages have their own, and `grid`, where a choice has all its
options, from the space (`resolved_for`).
"""

from typing import TypeAlias

from evomerge.strategies.base import AskTellError, Candidate, Evaluated, Genotype, Strategy
from evomerge.strategies.catcma import CatCma, CatCmaConfig
from evomerge.strategies.cma_es import CmaEs, CmaEsConfig
from evomerge.strategies.eda import Eda, EdaConfig
from evomerge.strategies.genetic import Genetic, GeneticConfig
from evomerge.strategies.grid import GridConfig, GridSearch
from evomerge.strategies.m2n2 import M2n2, M2n2Config
from evomerge.strategies.map_elites import MapElites, MapElitesConfig
from evomerge.strategies.nevergrad import Nevergrad, NevergradConfig
from evomerge.strategies.nsga2 import Nsga2, Nsga2Config
from evomerge.strategies.random import RandomConfig, RandomSearch
from evomerge.strategies.staged import Staged, StagedConfig
from evomerge.strategies.warm_start import Founders, WarmStart
from search_spaces.spaces.space import SearchSpace

AnyStrategyConfig: TypeAlias = (
    CmaEsConfig  # the default
    | EdaConfig
    | CatCmaConfig
    | M2n2Config
    | GeneticConfig
    | MapElitesConfig
    | Nsga2Config
    | NevergradConfig
    | RandomConfig
    | GridConfig
    | StagedConfig
)
"""Every strategy that a search file can name by its `kind`."""


def resolved_for(config: AnyStrategyConfig, space: SearchSpace, *, noise: float, evaluations: int) -> AnyStrategyConfig:
    """Return a strategy's settings with every `auto` replaced by what it means for this space and budget.

    Parameters
    ----------
    config
        The settings; of a plug-in's, too.
    space
        What is searched.
    noise
        Standard error to expect of one fitness value.
    evaluations
        The budget.

    Raises
    ------
    ValueError
        If the settings are not for this space or budget, or a package is missing.
    """
    if isinstance(config, StagedConfig | GridConfig):
        return config.resolved_for(space, noise=noise, evaluations=evaluations)
    return config.resolved(space.dimension, noise=noise, evaluations=evaluations)


__all__ = [
    "AnyStrategyConfig",
    "AskTellError",
    "Candidate",
    "CatCma",
    "CatCmaConfig",
    "CmaEs",
    "CmaEsConfig",
    "Eda",
    "EdaConfig",
    "Evaluated",
    "Founders",
    "Genetic",
    "GeneticConfig",
    "Genotype",
    "GridConfig",
    "GridSearch",
    "M2n2",
    "M2n2Config",
    "MapElites",
    "MapElitesConfig",
    "Nevergrad",
    "NevergradConfig",
    "Nsga2",
    "Nsga2Config",
    "RandomConfig",
    "RandomSearch",
    "Staged",
    "StagedConfig",
    "Strategy",
    "WarmStart",
    "resolved_for",
]
