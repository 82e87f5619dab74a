"""`evomerge init`: a commented search file for these models and tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import yaml

from evomerge.cli.evaluate import of_tasks
from evomerge.cli.printing import say
from evomerge.config.errors import ConfigError
from evomerge.config.genome import from_genome
from evomerge.config.paths import names_of
from evomerge.files.atomic import write_text
from evomerge.files.references import local_or_hub
from evomerge.merging.checks import preflight
from evomerge.merging.sources.open_sources import open_sources, typed
from search_spaces.recipes.references import with_parts

GENES = 60
"""About as many genes as a few hundred evaluations can search."""

TEMPLATE = """\
# A search file for evomerge. Check it with `evomerge plan {file}`, then run `evomerge search {file}`.
# All keys are in docs/reference.md; the names that space, method and strategy may have: `evomerge plugins`.
models:  # the first is the base that the others were trained from
{models}
space:
  kind: layer_coefficients  # one weight per expert and group of layers
  method: {method}
  layers_per_group: {layers_per_group}  # the models have {num_layers} layers; 1: each has weights of its own
  modules: all  # or [attention, mlp, other]: a weight for each
  weight: {{low: -0.5, high: 1.5, start: 0.5}}
strategy: cma_es  # or gradient: far fewer answers, if tasks name right answers and a backward pass fits into memory
fitness:
  tasks: {tasks}  # or {{task: NAME, weight: 2}} in place of a name
{include}  subset: 100  # search items per task and candidate, or `all`
  held_out: 0.5  # kept for the final table: a fraction, or the name of another split
  # allow_test_split: true  # needed if a task has only a test split
{vocabulary}budget: {evaluations}  # candidates to score
out_dtype: bfloat16
seed: 0
"""


def init(
    models: Sequence[str],
    tasks: Sequence[str],
    include_path: Sequence[Path],
    output: Path,
    vocabulary: str | None = None,
) -> None:
    """Write the file after opening the models and checking that they can be merged."""
    if len(models) < 2:
        raise ConfigError("--models: name the base and at least one expert: --models BASE EXPERT")
    if output.exists():
        raise ConfigError(f"{output} exists already; name another file with -o")
    models = [typed(model) for model in models]
    references = [with_parts(model, _reference) for model in models]
    for reference in references:
        if references.count(reference) > 1:
            raise ConfigError(f"--models: {reference} is named twice; name each model once")
    names = names_of(models)
    checkpoints = open_sources(dict(zip(names, models, strict=True)), names[0], vocabulary=vocabulary)
    preflight.check(checkpoints, names[0], scan=False)
    of_tasks(tasks, include_path, split=None)  # checks that they exist
    num_layers, experts = checkpoints[names[0]].layout.num_layers, len(models) - 1
    groups = max(1, min(num_layers, GENES // experts - 2))  # embeddings and head are groups of their own
    layers_per_group = math.ceil(num_layers / groups)
    genes = experts * (math.ceil(num_layers / layers_per_group) + 2)
    text = TEMPLATE.format(
        file=output,
        models="\n".join(f"  {_text(name)}: {_text(path)}" for name, path in zip(names, references, strict=True)),
        method="task_arithmetic",
        layers_per_group=layers_per_group,
        num_layers=num_layers,
        tasks=_text(list(tasks)),
        include="".join(_include(include_path)),
        vocabulary="" if vocabulary is None else f"vocabulary: {vocabulary}  # of merges; the models' differ\n",
        evaluations=max(200, 10 * genes),
    )
    write_text(output, text)
    say(f"wrote {output}: {genes} genes; next: evomerge plan {quote(str(output))}")


def init_from(genome: Path, output: Path, include_path: Sequence[Path]) -> None:
    """Write the search file that means what a genome of mergekit-evolve means, and say what has no counterpart."""
    for sentence in from_genome(genome, output, include_path):
        say(sentence, stderr=True)
    say(f"wrote {output}; next: evomerge plan {quote(str(output))}")


def _reference(model: str) -> str:
    """Return local folders as absolute paths: the search file may lie elsewhere."""
    return str(local_or_hub(model))


def _include(paths: Sequence[Path]) -> list[str]:
    return [f"  include_path: {_text([str(path.resolve()) for path in paths])}\n"] if paths else []


def _text(value: str | list[str]) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
