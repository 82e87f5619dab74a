"""Search strategies with an ask/tell interface: numpy only, no torch, no I/O, resumable by replay.

A strategy is one file with its settings (a `StrategyConfig`, registered with `register_strategy`) and its `Strategy`.
Importing this package imports every file in it, so a new file is registered without an edit elsewhere.
`evomerge.testing.StrategySuite` tests a strategy.
"""

from evomerge.strategies.base import AskTellError, Candidate, Evaluated, Genotype, Strategy, StrategyConfig
from evomerge.strategies.catcma import CatCma, CatCmaConfig
from evomerge.strategies.cma_es import CmaEs, CmaEsConfig
from evomerge.strategies.cma_me import CmaMe, CmaMeConfig
from evomerge.strategies.cycleqd import Cycleqd, CycleqdConfig
from evomerge.strategies.eda import Eda, EdaConfig
from evomerge.strategies.evo_merging import EvoMerging, EvoMergingConfig
from evomerge.strategies.genetic import Genetic, GeneticConfig
from evomerge.strategies.greedy import Greedy, GreedyConfig
from evomerge.strategies.grid import GridConfig, GridSearch
from evomerge.strategies.least_change import LeastChange, LeastChangeConfig
from evomerge.strategies.m2n2 import M2n2, M2n2Config
from evomerge.strategies.map import Map, MapConfig
from evomerge.strategies.map_elites import MapElites, MapElitesConfig
from evomerge.strategies.nevergrad import Nevergrad, NevergradConfig
from evomerge.strategies.nsga2 import FrontSearch, Nsga2Config
from evomerge.strategies.nsga3 import Nsga3Config
from evomerge.strategies.optuna import Optuna, OptunaConfig
from evomerge.strategies.ppo import Ppo, PpoConfig
from evomerge.strategies.random import RandomConfig, RandomSearch
from evomerge.strategies.registry import STRATEGIES, AnyStrategy, import_files, register_strategy
from evomerge.strategies.staged import Staged, StagedConfig
from evomerge.strategies.warm_start import WarmStart, WarmStartDistribution, WarmStartPopulation

import_files(__name__, __path__)

__all__ = [
    "STRATEGIES",
    "AnyStrategy",
    "AskTellError",
    "Candidate",
    "CatCma",
    "CatCmaConfig",
    "CmaEs",
    "CmaEsConfig",
    "CmaMe",
    "CmaMeConfig",
    "Cycleqd",
    "CycleqdConfig",
    "Eda",
    "EdaConfig",
    "Evaluated",
    "EvoMerging",
    "EvoMergingConfig",
    "FrontSearch",
    "Genetic",
    "GeneticConfig",
    "Genotype",
    "Greedy",
    "GreedyConfig",
    "GridConfig",
    "GridSearch",
    "LeastChange",
    "LeastChangeConfig",
    "M2n2",
    "M2n2Config",
    "Map",
    "MapConfig",
    "MapElites",
    "MapElitesConfig",
    "Nevergrad",
    "NevergradConfig",
    "Nsga2Config",
    "Nsga3Config",
    "Optuna",
    "OptunaConfig",
    "Ppo",
    "PpoConfig",
    "RandomConfig",
    "RandomSearch",
    "Staged",
    "StagedConfig",
    "Strategy",
    "StrategyConfig",
    "WarmStart",
    "WarmStartDistribution",
    "WarmStartPopulation",
    "register_strategy",
]
