"""What docs/fitness.md shows can be used as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from fitness.config import FitnessConfig

PAGE = (Path(__file__).parents[2] / "docs" / "fitness.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_search_files(text: str) -> None:
    given = yaml.safe_load(text)["fitness"]
    found = FitnessConfig.model_validate({"tasks": [{"task": "a"}]} | given)
    assert given.keys() <= found.model_fields_set


def test_item_response_theory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(rng.normal(size=12) - rng.normal(size=(60, 1))))
    monkeypatch.chdir(tmp_path)
    np.save("responses.npy", (rng.random(chance.shape) < chance).astype(float))
    (text,) = blocks("python")
    found: dict = {}
    exec(text, found)  # the documentation's own
    assert found["bank"].discrimination.shape == (12, 1)
    assert 0 < found["expected"] < 1
