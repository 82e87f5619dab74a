"""What the pages say of spaces: blocks can be used as they stand, and methods are counted right."""

import re
from pathlib import Path

import pytest
import yaml

from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.methods import METHODS
from search_spaces.spaces.layer_coefficients import CoefficientConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "coefficients.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)]


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_block(block):
    if "space" in block:
        assert CoefficientConfig(**block["space"])
    else:
        assert all(file.endswith(".txt") for file in mergekit_yaml.build(block).calibration_files)


def test_number_of_methods_that_a_search_can_take():
    own = {name: [each for each in spec.parameters if each.search and not each.after] for name, spec in METHODS.items()}
    searched = [name for name, parameters in own.items() if parameters and name != "passthrough"]
    assert f"| merge methods searched | {len(searched)}, " in (ROOT / "README.md").read_text(encoding="utf-8")
