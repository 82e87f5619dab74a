"""M2N2 over mixtures of the zoo: an archive holds recipes, and the only weights are those of the sources."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from evomerge.runs.run import Asked, ReferenceScore, Run
from search_spaces.recipes import mergekit_yaml
from tests.cli.test_every_strategy import run

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo"
ARCHIVE, EVALUATIONS = 100, 160
MEGABYTE = 1_000_000


def evomerge(*arguments, cwd):
    """Call the command in this process; return what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        code, printed = run(patch, *arguments)
    assert code == 0, printed
    return printed


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Return a folder with a finished run."""
    folder = tmp_path_factory.mktemp("niches")
    config = {
        "models": {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja", "eo")},
        "space": {"kind": "mixture", "chunks": 32, "chromosomes": ["attention"]},
        "strategy": {"kind": "m2n2", "archive": ARCHIVE, "warm_up": 20},
        "fitness": {
            "tasks": [{"task": "zoo_target_gen"}],
            "include_path": [str(ZOO / "tasks")],
            "subset": {"items": 64},
            "held_out": "test",
        },
        "budget": {"evaluations": EVALUATIONS},
        "workers": {"threads": 1},
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    evomerge("search", "search.yaml", "--run", "run", cwd=folder)
    return folder


@pytest.mark.slow
def test_an_archive_of_a_hundred_is_megabytes(searched):
    files = [file for file in (searched / "run").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5 * MEGABYTE
    assert not [file for file in searched.rglob("*") if file.suffix in (".safetensors", ".bin", ".pt", ".npy")]
    with Run.read(searched / "run") as run:
        asked = [event.candidate for event in run.events() if isinstance(event, Asked)]
    genotypes = [candidate.genotype for candidate in asked if candidate.kind not in ("founder", "again")]
    assert len(genotypes) == EVALUATIONS
    assert len({genotype.tobytes() for genotype in genotypes}) > ARCHIVE


@pytest.mark.slow
def test_the_best_is_rebuilt_from_its_recipe_alone(searched):
    evomerge("export", "run", "-o", "recipe.yaml", cwd=searched)
    recipe = mergekit_yaml.read(searched / "recipe.yaml")
    with Run.read(searched / "run") as run:
        finals = [event for event in run.events() if isinstance(event, ReferenceScore) and event.purpose == "held_out"]
    (recorded,) = {final.recipe: final.evaluation for final in finals if final.recipe == recipe.hash}.values()
    again = json.loads(evomerge("evaluate", "recipe.yaml", "--like", "run", "--json", cwd=searched))["scores"]
    assert tuple(again) == recorded.items
    assert np.array_equal(np.array(list(again.values()), dtype=np.float32), recorded.scores)
    assert len(recorded.items) >= 400


@pytest.mark.slow
def test_it_is_better_than_every_source(searched):
    rows = json.loads((searched / "run" / "result.json").read_text(encoding="utf-8"))["held_out"]
    found, *others = rows
    assert found["kind"] == "found"
    assert all(found["score"] > row["score"] for row in others if row["kind"] == "source")
