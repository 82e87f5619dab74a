"""The tensors that mergekit 0.1.5 merges of each architecture that it has a definition of.

``architectures.json`` holds their names, and nothing else of mergekit's definitions; a test compares it with the
installed mergekit. Of a model of such an architecture mergekit merges these tensors and passes over all others.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("architectures.json")


@dataclass(frozen=True)
class Definition:
    """What mergekit merges of one architecture, by names with ``{}`` in place of numbers.

    Attributes
    ----------
    tensors
        All names.
    required
        Those without which it merges nothing.
    """

    tensors: frozenset[str]
    required: frozenset[str]


@dataclass(frozen=True)
class Model:
    """A model to merge, as far as mergekit's definitions are concerned.

    Attributes
    ----------
    architecture, model_type
        As config.json names them.
    names
        Its parameters by the names of the transformers module, tied ones once, in the module's order.
    keys
        The names of the tensors in its files.
    part_of
        The type of the larger model whose text part it is; None: it is all of its model.
    treated_otherwise
        A sentence for each thing in its files that mergekit treats otherwise in the merge.
    """

    architecture: str
    model_type: str
    names: tuple[str, ...]
    keys: frozenset[str] = frozenset()
    part_of: str | None = None
    treated_otherwise: tuple[str, ...] = ()

    @property
    def definition(self) -> Definition | None:
        """The definition in mergekit; None where it derives one from the module's tensors, and so knows all of them.

        Of several definitions for an architecture, mergekit takes that of the model type; a single one is for all.
        """
        found = _definitions().get(self.architecture, {})
        return next(iter(found.values())) if len(found) == 1 else found.get(self.model_type)

    def dropped(self) -> list[str]:
        """Return the parameters that mergekit passes over."""
        definition = self.definition
        return [] if definition is None else [name for name in self.names if _pattern(name) not in definition.tensors]

    def lacking(self) -> list[str]:
        """Return the tensors that mergekit requires and the model does not have, of the first layer for all layers."""
        definition = self.definition
        if definition is None:
            return []
        own = {_pattern(name) for name in (*self.names, *self.keys)}
        return [name.replace("{}", "0") for name in sorted(definition.required - own)]


def _pattern(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?=\.)", "{}", name)


@cache
def _definitions() -> dict[str, dict[str, Definition]]:
    """Return definitions by architecture and model type."""
    found: dict[str, dict[str, Definition]] = {}
    for entry in json.loads(TABLE.read_text(encoding="utf-8")):
        required = frozenset(entry["required"])
        definition = Definition(required | frozenset(entry["optional"]), required)
        for architecture in entry["architectures"]:
            found.setdefault(architecture, {})[entry["model_type"]] = definition
    return found
