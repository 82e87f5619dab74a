"""Each attack must end in a clear error of evomerge's own, without taking much memory."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MODEL = Path(__file__).parent.parent.parent / "experiments" / "zoo" / "models" / "ops"
MAX_GROWTH = 300 << 20  # bytes


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.fixture
def refused() -> Callable:
    """Return a context that expects an error of this type, on one line with these words, and little memory in use."""

    @contextmanager
    def refused(error: type[Exception], *words: str) -> Iterator[None]:
        before = _peak()
        with pytest.raises(error) as caught:
            yield
        message = str(caught.value)
        assert len(message) < 1000 and "\n" not in message, message[:2000]
        for word in words:
            assert word in message
        assert _peak() - before < MAX_GROWTH

    return refused


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a copy of a small model's folder."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


@pytest.fixture
def set_config(model: Path) -> Callable[..., None]:
    """Return a function that overwrites values in the model's config.json."""

    def set_config(**values: object) -> None:
        file = model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return set_config
