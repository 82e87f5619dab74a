"""What docs/coefficients.md shows can be used as it stands."""

import re
from pathlib import Path

import pytest
import yaml

from search_spaces.recipes import mergekit_yaml
from search_spaces.spaces.layer_coefficients import CoefficientConfig

PAGE = (Path(__file__).parents[3] / "docs" / "coefficients.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)]


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_block(block):
    if "space" in block:
        assert CoefficientConfig(**block["space"])
    else:
        assert all(file.endswith(".txt") for file in mergekit_yaml.build(block).calibration_files)
