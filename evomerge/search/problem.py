"""The checked inputs of a search: its file, the opened models and tasks, the space and the items."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from evomerge.config.calibration import asks_for_tasks, check_texts, with_task_texts
from evomerge.config.errors import ConfigError
from evomerge.config.names import check_names, check_tasks
from evomerge.config.search_file import BudgetConfig, SearchConfig
from evomerge.files.messages import counted
from evomerge.merging.checks import behaviour, preflight
from evomerge.merging.checks.similarity import squared_norms
from evomerge.merging.engine.gram import gram_matrices
from evomerge.merging.output.writer import rehearse
from evomerge.merging.sources.open_sources import open_sources
from evomerge.merging.sources.source import Source
from evomerge.runs.environment import MOST_GENES, Environment, GeneRecord
from evomerge.runs.result import Entry
from evomerge.runs.run import EventLog
from evomerge.search.auto_strategy import Choice, choose
from evomerge.search.environment import (
    compute_dtype,
    config_identity,
    engine_versions,
    source_files,
    text_hash,
    tokenizer_files,
    versions,
)
from evomerge.search.founders import Founder, founders
from evomerge.search.gradient_steps import GradientSteps
from evomerge.search.loop import Notify, Search
from evomerge.search.recorded_scoring import RecordedScorer
from evomerge.search.rows_on_request import check_answers
from evomerge.search.warm_start import EarlierQuestions, WarmStartSettings, earlier_questions, load_warm_start
from evomerge.strategies import Strategy, StrategyConfig
from evomerge.strategies.auto import AutoConfig
from evomerge.strategies.founded import Founded
from evomerge.trackers.base import check_trackers
from evomerge.version import VERSION
from evomerge.workers.config import RayConfig
from fitness.config import FitnessConfig
from fitness.estimation.evaluation_plan import (
    EstimatedPlan,
    EvaluationPlan,
    FixedItemsPlan,
    check_item_banks,
    estimator_inputs,
)
from fitness.estimation.item_banks import ItemBanks
from fitness.functions.evaluator import FunctionEvaluator
from fitness.functions.loading import FitnessFunction
from fitness.functions.opening import AnyEvaluator, Suite, evaluator_for, load_suite
from fitness.items import is_whole_model, positions_by_task, task_of
from fitness.results import TaskError
from fitness.tasks.code import CodeCheck, allow
from fitness.tasks.lm_eval_rules import longest_input
from search_spaces.recipes.baselines import TASK_ARITHMETIC_SCALE, source_recipe, task_arithmetic_recipe, uniform_recipe
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.yaml_text import read_text
from search_spaces.spaces.context import SpaceContext
from search_spaces.spaces.registry import build_space


class Problem:
    """Opened sources, space and tasks of one search file.

    Everything that can be checked before the first candidate is checked when this is built.

    Parameters
    ----------
    config
        The search file.
    scan
        Whether to look for NaN in the sources, and to try to write a merge without its weights.
    task_code
        Called with the code of each task that has some, before it runs.
    recorded
        The environment of the run that is continued; None: it begins.
    opening
        Called with what is opened next; for the user, since reading large models takes minutes.
    function
        The function that a program has given in place of tasks; None: as the search file says.

    Attributes
    ----------
    given_function
        As given.
    steps
        What gradient steps are asked.
    seen
        Keys of the questions that earlier searches have seen, those of the warm start and of the start that the search
        file names; none of these questions is held out.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        scan: bool = True,
        task_code: CodeCheck = allow,
        recorded: Environment | None = None,
        opening: Callable[[str], None] = lambda what: None,
        function: FitnessFunction | None = None,
    ) -> None:
        self.config = config
        self.given_function = function
        if recorded is None:
            check_names(config)
            check_tasks(config)
        check_workers(config)
        engine_versions(config.fitness.engine)
        check_trackers(config.trackers)
        opening("models")
        self.checkpoints: Mapping[str, Source] = open_sources(
            config.models, config.base, vocabulary=config.vocabulary_policy
        )
        self.report = preflight.check(
            self.checkpoints, config.base, scan=scan, allow_unrelated=config.allow_unrelated, scanned=opening
        )
        if config.fitness.apply_chat_template:
            behaviour.check_chat_template(self.checkpoints, config.base)
        if scan:
            rehearse(self.checkpoints[config.base])
        self.layout = self.checkpoints[config.base].layout
        self.sizes = {name: math.prod(self.checkpoints[config.base].shape(name)) for name in self.layout.tensors()}
        context = SpaceContext(
            config.models,
            self.layout,
            self.sizes,
            out_dtype=config.out_dtype,
            seed=config.seed,
            gram=partial(gram_matrices, self.checkpoints),
            squared_norms=partial(squared_norms, self.checkpoints, config.base),
        )
        if not asks_for_tasks(config.space):
            self.space = config.stamped(build_space(config.space, context))
        self._references = config.models if recorded is None else recorded.references
        earlier = earlier_questions(config) if recorded is None else EarlierQuestions.of(recorded)
        self.seen, self._seen_where, self._unknown_origins = earlier.keys, earlier.where, earlier.warnings
        opening("tasks")
        self.suite: Suite = load_suite(config.fitness, config.seed, task_code, self.seen, function)
        if asks_for_tasks(config.space):
            self.space = config.stamped(build_space(with_task_texts(config.space, self.suite), context))
        check_tasks(config, tuple(self.suite.weights))
        check_texts(config.space, self.suite)
        _check_race(config.fitness, self.suite)
        try:
            check_answers(config, self.suite)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.search_items = self.suite.pool.subset("all", config.seed)
        chosen = self._chosen(config)
        self.config = config = chosen.config
        self.chosen = chosen.reason
        self.subset = _asked(self.suite, config)
        self.item_banks = _item_banks(config.fitness)
        if self.asks_few:
            few = config.fitness.subset
            check_item_banks(self._items_by_task(), self.item_banks, few.estimator, few.item_bank)
        self.held_out_items = self.suite.pool.held_out_ids()
        self.steps = self._steps(config)
        if self.steps.wanted:
            self.steps.check()

    @cached_property
    def warnings(self) -> list[str]:
        """What a user should know before the search; found out when first read, since workers never ask.

        Raises
        ------
        TaskError
            If a prompt cannot be built.
        """
        return [
            *self.report.warnings,
            *self.space.notes,
            *(
                f"{task}: {counted(count, 'held-out item')} left out, because search items have the same question"
                for task, count in self.suite.pool.dropped.items()
                if count
            ),
            *(
                f"{task}: {counted(count, 'held-out item')} left out, because {self._seen_where} has seen them"
                for task, count in self.suite.pool.dropped_seen.items()
                if count
            ),
            *self._unknown_origins,
            *_idle_workers(self.config),
            *self._cut_prompts(),
            *self.suite.overlaps(),  # after it: the prompts, and with them the examples, are built
        ]

    def _cut_prompts(self) -> Iterator[str]:
        """Yield a line for each task with prompts that models cannot read whole."""
        source = self.checkpoints[self.config.base]
        if not source.tokenizer.files:
            return  # scoring says that it is missing
        evaluator = self.evaluator
        if isinstance(evaluator, FunctionEvaluator):
            return  # what a function asks is not known
        limit = evaluator.max_length or longest_input(source.config, evaluator.tokenizer)
        for side, items in (("search", self.search_items), ("held-out", self.held_out_items)):
            for task, places in positions_by_task(items).items():
                cut = evaluator.cut_items([items[at] for at in places], limit)
                if cut:
                    yield (
                        f"{task}: the prompts of {cut} of {len(places)} {side} items are longer than the {limit} "
                        "tokens that are read and lose their beginning, few-shot examples first; lower "
                        "fitness.num_fewshot, or raise fitness.max_length where it is the bound"
                    )

    def _chosen(self, config: SearchConfig) -> Choice:
        """Return the search file with what `strategy: auto` means here, and why."""
        if not isinstance(config.strategy, AutoConfig):
            return Choice(config, "")
        try:
            self._steps(config).check()
            obstacle = None
        except (ConfigError, TaskError) as error:
            obstacle = str(error).removeprefix("strategy.kind gradient: ").partition(";")[0]
        items = Counter(task_of(item) for item in self.search_items)
        return choose(config, self.space, obstacle, items)

    def _steps(self, config: SearchConfig) -> GradientSteps:
        return GradientSteps(config, self.suite, self.space, self.checkpoints[config.base])

    @property
    def needs_sources(self) -> bool:
        """Whether sources are scored on all search items before the search."""
        fitness = self.config.fitness
        return fitness.compares_with_sources or (self.asks_few and fitness.subset.needs_parents)

    @property
    def asks_few(self) -> bool:
        """Whether candidates are asked only some of the search items."""
        return len(self.subset) < len(self.search_items)

    def evaluation_plan(self, scorer: RecordedScorer) -> EvaluationPlan:
        """Return how candidates are evaluated; sources are scored on all search items where that is needed.

        Raises
        ------
        TaskError
            If an estimator lacks what it needs, or scores are compared with those of the best source and it scores 0.
        """
        fitness, few = self.config.fitness, self.config.fitness.subset
        scored = {
            entry.name: scorer.score("parent", entry, self.search_items)
            for entry in (self.sources() if self.needs_sources else [])
            if entry.name != self.config.base or fitness.compares_with_sources
        }
        objectives = fitness.objectives_for(list(scored.values()), self.suite.entries)
        experts = [answers for name, answers in scored.items() if name != self.config.base]
        estimator = "inherited" if few.estimator == "auto" else few.estimator
        rotate = few.rotates(estimator)
        if not self.asks_few or few.ids is not None or (estimator == "mean" and not rotate):
            return FixedItemsPlan(self.subset, objectives)
        assert few.items != "all"
        inputs = {
            task: estimator_inputs(task, items, experts, self.item_banks, estimator)
            for task, items in self._items_by_task().items()
        }
        return EstimatedPlan(self.search_items, inputs, objectives, estimator, few.items, self.config.seed, rotate)

    def _items_by_task(self) -> dict[str, list[str]]:
        """Return the search items of each task, in the order of the tasks."""
        places = positions_by_task(self.search_items)
        return {task: [self.search_items[at] for at in places[task]] for task in self.suite.weights}

    @property
    def noise(self) -> float:
        """The largest standard error that one fitness value can have: that of one coin flip per item; 0 for models."""
        if is_whole_model(self.subset[0]):
            return 0.0
        return largest_error(self.suite.weights, Counter(task_of(item) for item in self.subset))

    def resolved(self) -> SearchConfig:
        """Return the config with every `auto` of the strategy replaced by what it means here.

        Raises
        ------
        ConfigError
            If the strategy does not fit this space or budget, it needs a package that is missing, or the run of its
            warm start cannot be used.
        """
        return self.config.model_copy(update={"strategy": self.warm_start.strategy})

    @cached_property
    def warm_start(self) -> WarmStartSettings:
        """The resolved strategy with the candidates of its warm start, read once; raises as `resolved` does."""
        strategy = self.config.strategy
        try:
            start = load_warm_start(strategy, self.config, self.space, self._resolved(strategy))
            return replace(start, strategy=self._resolved(start.strategy))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _resolved(self, strategy: StrategyConfig) -> StrategyConfig:
        evaluations = self.config.budget.evaluations
        return strategy.resolved(self.space, noise=self.noise, evaluations=evaluations)

    def strategy(self) -> Strategy:
        """Return the configured strategy, newly built, with the founders before it."""
        points = {founder.genotype.tobytes(): founder.genotype for founder in self.founders}
        return Founded(self.space, self.config.seed, self.resolved().strategy, list(points.values()))

    def begin(self, log: EventLog, plan: EvaluationPlan, budget: BudgetConfig, notify: Notify | None = None) -> Search:
        """Return the search at the end of a log's events; arguments as for `Search`."""
        step_items = self.steps.items if self.steps.wanted else None
        founder_items = step_items if self.steps.windows is None else None  # a text gives no scores
        return Search(
            log,
            self.space,
            self.strategy(),
            budget,
            plan,
            notify,
            step_items,
            self.other_spellings(),
            founder_items,
            self.recipe_hash,
            self.config.strategy.reads_answers,
        )

    @cached_property
    def founders(self) -> list[Founder]:
        """The recipes that need no search, as points of the space, as far as it has them."""
        return founders(self.config.models, self.layout, self.baselines(), self.space)

    def sources(self) -> list[Entry]:
        """Return every source, unchanged."""
        layout, dtype = self.layout, self.config.out_dtype
        return [
            Entry(name, "source", source_recipe(reference, layout, out_dtype=dtype))
            for name, reference in self.config.models.items()
        ]

    def baselines(self) -> list[Entry]:
        """Return every source, unchanged, the uniform average of the experts, and task arithmetic with weight 0.3."""
        models, layout, dtype = self.config.models, self.layout, self.config.out_dtype
        uniform = uniform_recipe(models, layout, out_dtype=dtype)
        arithmetic = task_arithmetic_recipe(models, layout, TASK_ARITHMETIC_SCALE, out_dtype=dtype)
        vocabulary = self.config.vocabulary_policy  # as the space's recipes have it: else `merge` would refuse them
        return [
            *self.sources(),
            Entry("uniform average", "uniform", replace(uniform, tokenizer_source=vocabulary)),
            Entry(
                f"task arithmetic {TASK_ARITHMETIC_SCALE}",
                "task_arithmetic",
                replace(arithmetic, tokenizer_source=vocabulary),
            ),
        ]

    def alternatives(self) -> list[Entry]:
        """Every recipe that needs no search: the baselines, and the space's start if it is none of them."""
        return [*self.baselines(), *(founder.entry for founder in self.founders if founder.entry.kind == "start")]

    def other_spellings(self) -> dict[str, str]:
        """Hashes of recipes that give the same model: that of an alternative to that of its point of the space."""
        pairs = [(founder.entry.recipe, founder.recipe) for founder in self.founders if founder.exact]
        return {self.recipe_hash(entry): self.recipe_hash(point) for entry, point in pairs}

    @cached_property
    def evaluator(self) -> AnyEvaluator:
        """Asks the items with the base's tokenizer; for what follows from prompts alone."""
        tokenizer = self.checkpoints[self.config.base].tokenizer.load()
        return evaluator_for(self.suite, tokenizer, max_length=self.config.fitness.max_length)

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Sizes and hashes of the sources' files, from when this was first read."""
        return source_files(self.checkpoints)

    def recipe_hash(self, recipe: Recipe) -> str:
        """Return a recipe's hash with its models where they were when the run began; their contents are the same."""
        if self._references == self.config.models:
            return recipe.hash
        began = {reference: self._references.get(name, reference) for name, reference in self.config.models.items()}
        return recipe.with_models(began).hash

    def environment(self, only: Collection[str] | None = None) -> Environment:
        """Return the versions of all packages that affect numbers, and the identity of the search when first asked.

        Parameters
        ----------
        only
            Ids of the items whose prompts are built and compared; None: all.

        Raises
        ------
        TaskError
            A prompt cannot be built.
        CheckpointError
            There is no tokenizer.
        """
        return self._environment if only is None else self._identified(only)

    @cached_property
    def _environment(self) -> Environment:
        return self._identified(None)

    def _identified(self, only: Collection[str] | None) -> Environment:
        base, config = self.checkpoints[self.config.base], self.resolved()
        return Environment(
            evomerge=VERSION,
            packages=versions() | engine_versions(config.fitness.engine),
            config=config_identity(config),
            items=self.suite.identity(self.evaluator.requests, only),
            earlier=" ".join(sorted(self.seen)),
            references=self._references,
            sources=self.fingerprints,
            tokenizers=tokenizer_files(self.checkpoints),
            chat_template=text_hash(base.tokenizer.chat_template()) if config.fitness.apply_chat_template else "",
            compute_dtype=compute_dtype(config),
            layout=self.layout,
            sizes=self.sizes,
            chosen=self.chosen,
            genes=tuple(map(GeneRecord.of, self.space.genes)) if self.space.dimension <= MOST_GENES else (),
        )


def largest_error(weights: Mapping[str, float], asked: Mapping[str, int]) -> float:
    """Return the standard error of a weighted mean over tasks if every answer is a coin flip; keys are task names."""
    total = sum(weights.values())
    return math.sqrt(sum((weight / total * 0.5) ** 2 / asked[task] for task, weight in weights.items()))


def _check_race(fitness: FitnessConfig, suite: Suite) -> None:
    """Refuse a test of right and wrong answers where the tasks' answers count differently."""
    rules = fitness.racing
    if rules is not None and rules.test in ("exact", "sprt") and len(set(suite.weights.values())) > 1:
        raise ConfigError(
            f"fitness.racing.test: {rules.test} counts right and wrong answers, and those of some tasks count more "
            "than others (weight); write posterior, or give all tasks one weight"
        )


def check_workers(config: SearchConfig) -> None:
    """Refuse workers that cannot start on this machine, where their kind can tell.

    Raises
    ------
    WorkerError
        If so.
    """
    check: Callable[[], None] | None = getattr(config.workers, "check", None)
    if check is not None:
        check()


def _idle_workers(config: SearchConfig) -> list[str]:
    """Return a warning if the strategy proposes too few candidates for the workers; a run cannot change that later."""
    limit, workers = config.strategy.most_in_flight, config.workers
    if limit is None or not isinstance(workers, RayConfig):
        return []
    if limit >= (2 if workers.count == "auto" else workers.count):
        return []
    wanted = "the number of workers" if workers.count == "auto" else workers.count
    return [f"strategy.parallel is {limit}: it keeps at most {counted(limit, 'worker')} busy; write {wanted}"]


def _item_banks(fitness: FitnessConfig) -> ItemBanks | None:
    """Return the item banks that a search file names."""
    if fitness.subset.item_bank is None:
        return None
    try:
        return ItemBanks.load(fitness.subset.item_bank)
    except ValueError as error:
        raise ConfigError(f"fitness.subset.item_bank: {error}") from None


def _asked(suite: Suite, config: SearchConfig) -> tuple[str, ...]:
    """Return the ids of the items that each candidate is asked: those in a file, or some drawn with the seed."""
    few = config.fitness.subset
    if few.ids is None:
        return suite.pool.subset(few.items, config.seed)
    try:
        lines = map(str.strip, read_text(Path(few.ids)).splitlines())
        return suite.pool.listed({line for line in lines if line and not line.startswith("#")})
    except RecipeError as error:  # it names the file, and what a recipe needs
        raise ConfigError(
            f"fitness.subset.ids: {str(error).rpartition('; ')[0]}; name a text file of item ids"
        ) from None
    except TaskError as error:
        raise ConfigError(f"fitness.subset.ids: {few.ids}: {error}") from None
