"""What must start quickly imports nothing heavy; `test_rooms` holds which way imports go."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "ray", "datasets", "lm_eval", "pandas", "pyarrow", "altair", "vl_convert")


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after `code`."""
    script = f"import sys\n{code}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import evomerge",
        "import evomerge.strategies",
        "import evomerge.config.search_file",
        "import evomerge.runs.run, evomerge.runs.history, evomerge.search.loop, evomerge.runs.result",
        "import evomerge.cli.main, evomerge.cli.status, evomerge.cli.export, evomerge.cli.merge",
        "import search_spaces.spaces.coefficients, search_spaces.recipes.baselines",
        "import fitness.config, fitness.results, fitness.estimation.intervals",
    ],
)
def test_imports_are_light(code):
    assert not loaded_after(code) & set(HEAVY)


def test_strategies_do_not_import_torch_even_when_used():
    code = (
        "from evomerge.strategies import CmaEsConfig\n"
        "from search_spaces.spaces.coefficients import CoefficientSpace\n"
        "from search_spaces.spaces.layer_coefficients import CoefficientConfig\n"
        "from search_spaces.recipes.layout import ModelLayout\n"
        "layout = ModelLayout(('e',), (('a',),) * 3, 'l.{}.', ('n',))\n"
        "space = CoefficientSpace(CoefficientConfig(), {'b': 'b', 'x': 'x'}, layout)\n"
        "CmaEsConfig(population=4).build(space, 0).ask(3)"
    )
    assert "torch" not in loaded_after(code)


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "recipe.yaml", "OUT"],
        ["search", "search.yaml", "--run", "OUT"],
        ["init", "--models", "a", "b", "--tasks", "t", "-o", "OUT"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_taken_place_is_refused_before_torch_is_imported(tmp_path, arguments):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    assert not loaded_by([str(out) if argument == "OUT" else argument for argument in arguments]) & set(HEAVY)


def test_a_missing_recipe_is_refused_before_torch_is_imported(tmp_path):
    assert not loaded_by(["merge", str(tmp_path / "missing.yaml"), str(tmp_path / "out")]) & set(HEAVY)


def test_a_merge_of_common_models_imports_no_transformers(tmp_path):
    models = [str(ROOT / "experiments" / "zoo" / "models" / name) for name in ("base", "ja", "eo")]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": models[0],
        "models": [{"model": model, "parameters": {"weight": 0.5}} for model in models[1:]],
        "dtype": "bfloat16",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    loaded = loaded_by(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")], code=0)
    assert "torch" in loaded
    assert not loaded & {*HEAVY, "numba", "scipy"} - {"torch"}
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 0


def loaded_by(arguments: list[str], code: int = 2) -> set[str]:
    """Return the modules that a command has loaded when it ends with the exit code."""
    return loaded_after(
        "from evomerge.cli.main import main\n"
        f"sys.argv = ['evomerge', *{arguments!r}]\n"
        "try: main()\n"
        f"except SystemExit as stop: assert stop.code == {code}, stop.code"
    )


def test_help_takes_less_than_a_second_of_the_processor():
    command = [Path(sys.executable).parent / "evomerge", "--help"]
    used = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    assert "search" in done.stdout
    assert min(used) < 1.0
