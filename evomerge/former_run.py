"""What a former run of the same space has found, to begin a new search with."""

from __future__ import annotations

from pathlib import Path

from evomerge.config import ConfigError, SearchConfig, load
from evomerge.ledger import Ledger
from evomerge.run import Run, RunError, require_run
from evomerge.strategies import AnyStrategyConfig, CmaEsConfig
from evomerge.strategies.unit_box import UnitBox
from search_spaces.coefficients import CoefficientConfig
from search_spaces.space import SearchSpace


def warmed(strategy: AnyStrategyConfig, config: SearchConfig, space: SearchSpace) -> AnyStrategyConfig:
    """Return the strategy's settings with what the former run that they name says; most name none.

    What is read is written into the new run's config, so that resuming it does not depend on the former one.

    Raises
    ------
    ConfigError
        If the former run searched another space.
    RunError, LogError
        If it is no run, or damaged.
    """
    warm = strategy.warm_start if isinstance(strategy, CmaEsConfig) else None
    if warm is None or warm.known:
        return strategy
    path = Path(warm.run)
    with Run.read(path) as run:
        ledger = Ledger(run.events())
    former = load(path / "config.yaml")
    if (former.space, list(former.models)) != (config.space, list(config.models)):
        raise ConfigError(
            f"strategy.warm_start: {path} searched another space or other models; name a run with the same "
            "`models` and `space`"
        )
    box = UnitBox(space)
    ranking = ledger.ranking()
    points = [box.to_unit(ledger.asked[identity].candidate.genotype) for identity in ranking]
    learnt = warm.learnt(points, [ledger.evaluation(identity).fitness for identity in ranking])
    return strategy.model_copy(update={"warm_start": learnt})


def warm_start_override(config: SearchConfig, path: Path) -> str:
    """Return the `key=value` by which a search begins with what a run has found.

    CMA-ES begins with the distribution of the run's best candidates if the run searched the same space. In any other
    case a search of coefficients begins at the run's best recipe, as this space says it.

    Raises
    ------
    ConfigError
        If the space begins where it does, whatever was found before.
    RunError
        If it is no run, or has no best recipe yet.
    """
    require_run(path)
    former = load(path / "config.yaml")
    if isinstance(config.strategy, CmaEsConfig) and (former.space, former.models) == (config.space, config.models):
        return f"strategy.warm_start={path.resolve()}"
    if not isinstance(config.space, CoefficientConfig):
        raise ConfigError(
            f"--warm-start: a space of kind {config.space.kind} takes no recipe to begin at; write strategy.kind: "
            "cma_es and the run's own `space` and `models`, or leave --warm-start out"
        )
    best = path / "best.yaml"
    if not best.is_file():
        raise RunError(f"{path} has scored no candidate yet; name another run, or resume that one first")
    return f"space.start={best.resolve()}"
