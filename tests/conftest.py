"""Settings for the whole suite: no network, few threads, no writes into the repository."""

import atexit
import gc
import os
import shutil
import tempfile

os.environ.update(
    EVOMERGE_STATE=tempfile.mkdtemp(prefix="evomerge-state-"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    # The models are tiny: a second thread gains nothing, and costs much when other processes want the cores.
    OMP_NUM_THREADS="1",
)

from importlib import import_module
from types import ModuleType

import numpy as np
import pytest
from hypothesis import settings

from search_spaces.recipes.layout import ModelLayout
from search_spaces.spaces.coefficients import CoefficientSpace
from search_spaces.spaces.layer_coefficients import CoefficientConfig
from tests import command

atexit.register(shutil.rmtree, os.environ["EVOMERGE_STATE"], ignore_errors=True)

gc.disable()  # until all tests are collected


def pytest_collection_finish() -> None:
    """Leave what is loaded out of later collections: each would walk through some million objects of libraries."""
    gc.freeze()
    gc.enable()


# Every run draws the same examples: few in `make test`, many in `make test-slow` (--hypothesis-profile=thorough).
settings.register_profile("quick", max_examples=30, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=300, deadline=None, derandomize=True)
settings.load_profile("quick")

EXTRAS = {
    "numba": "evomerge[fast]",
    "gguf": "evomerge[gguf]",
    "mergekit": "mergekit==0.1.5",
    "sklearn": "evomerge[experiments]",
    "optuna_dashboard": "optuna-dashboard",
}


def required(package: str) -> ModuleType:
    """Import a package that a whole suite needs: without it the suite is skipped, but fails where CI is set."""
    try:
        return import_module(package)
    except ImportError as error:
        reason = f"{package} cannot be imported ({error}); pip install '{EXTRAS.get(package, package)}'"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def make_layout(num_layers: int) -> ModelLayout:
    """Return the layout of a small Llama."""
    names = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
    return ModelLayout(
        embeddings=("model.embed_tokens.weight",),
        layers=(names,) * num_layers,
        layer_prefix="model.layers.{}.",
        final=("model.norm.weight", "lm_head.weight"),
        head="lm_head.weight",
        attention="self_attn",
        mlp="mlp",
    )


@pytest.fixture(scope="session")
def evomerge():
    """Return a function that runs the command and returns its standard output, or its errors where it should fail."""
    return command.evomerge


@pytest.fixture
def refuse(tmp_path):
    """Return a check that the command refuses something in one line with these words."""

    def refuse(*arguments, words, code=2):
        found, _, err = command.run(*arguments, cwd=tmp_path)
        message = err.strip()
        assert found == code, message
        assert len(message.splitlines()) == 1, message
        for word in words:
            assert word in message
        return message

    return refuse


@pytest.fixture(scope="session")
def sandbox():
    """Skip where programs of a model cannot be run; in CI bubblewrap must be there, but the kernel may forbid it."""
    from fitness.results import TaskError
    from fitness.sandbox.bubblewrap import check

    try:
        check()
    except TaskError as error:
        missing = os.environ.get("CI") == "true" and shutil.which("bwrap") is None
        pytest.fail(str(error)) if missing else pytest.skip(str(error))


@pytest.fixture
def make_space():
    """Return a maker of coefficient spaces with so many genes (3 or more), over models that need not exist."""

    def make(genes: int) -> CoefficientSpace:
        models = {"base": "/models/base", "expert": "/models/expert"}
        return CoefficientSpace(CoefficientConfig(), models, make_layout(genes - 2))

    return make


def sphere(genotype: np.ndarray) -> float:
    """Return a fitness with its maximum, 0, at 0.8 in every gene."""
    return -float(np.sum((np.asarray(genotype) - 0.8) ** 2))


@pytest.fixture
def fitness_of():
    return sphere
