"""Search strategies with an ask/tell interface: numpy only, no torch, no I/O, resumable by replay."""

from evomerge.strategies.base import AskTellError, Candidate, Evaluated, Genotype, Strategy
from evomerge.strategies.cma_es import CmaEs, CmaEsConfig
from evomerge.strategies.random import RandomConfig, RandomSearch

__all__ = [
    "AskTellError",
    "Candidate",
    "CmaEs",
    "CmaEsConfig",
    "Evaluated",
    "Genotype",
    "RandomConfig",
    "RandomSearch",
    "Strategy",
]
