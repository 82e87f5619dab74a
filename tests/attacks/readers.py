"""Readers of untrusted data, each as a function of bytes: for the fuzz tests here and for long runs.

python -m tests.attacks.readers recipe CORPUS_FOLDER      # needs `pip install atheris`; Ctrl-C ends it
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from evomerge.config.errors import ConfigError
from evomerge.config.load import load
from evomerge.merging.sources.limits import LimitError, check_header, check_numbers, read_json
from evomerge.runs.history import RunHistory
from evomerge.runs.run import LogError, Run, RunError
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError


def recipe(data: bytes) -> None:
    """Read a recipe; what is accepted must survive its own canonical form."""
    with suppress(RecipeError, UnicodeDecodeError):
        found = mergekit_yaml.parse(data.decode())
        assert mergekit_yaml.parse(mergekit_yaml.dump(found)).hash == found.hash


def search_file(data: bytes) -> None:
    """Read a search file."""
    with tempfile.TemporaryDirectory() as folder, suppress(ConfigError):
        file = Path(folder, "search.yaml")
        file.write_bytes(data)
        load(file)


def event_log(data: bytes) -> None:
    """Read a run's events."""
    with tempfile.TemporaryDirectory() as folder, suppress(LogError, RunError):
        Path(folder, "events.sqlite").write_bytes(data)
        with Run.read(Path(folder)) as run:
            RunHistory(run.events())


def model_files(data: bytes) -> None:
    """Check a config and a safetensors header before anything is built from them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file")
        file.write_bytes(data)
        with suppress(LimitError, ValueError):
            check_numbers(read_json(file))
        with suppress(LimitError):
            check_header(file)


READERS = {reader.__name__: reader for reader in (recipe, search_file, event_log, model_files)}

if __name__ == "__main__":
    import atheris

    name = sys.argv.pop(1)
    atheris.instrument_all()
    atheris.Setup(sys.argv, READERS[name])
    atheris.Fuzz()
