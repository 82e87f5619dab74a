"""Licences of the sources, as their model cards state them, and which of them conflict.

A hint, not legal advice: a merge is treated as a work derived from every source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from evomerge.merging.sources.source import Source

MAX_CARD = 1_000_000  # characters of a model card that are read
Kind = Literal["permissive", "copyleft", "non-commercial", "vendor", "unknown"]

_PERMISSIVE = re.compile(
    r"apache-.*|mit|bsd.*|isc|cc0-1\.0|cc-by-[\d.]+|unlicense|wtfpl|zlib|odc-by|cdla-permissive-.*"
)
_COPYLEFT = re.compile(r"(a|l)?gpl-.*|(a|l)?gpl|cc-by-sa-.*|mpl-.*|eupl-.*|osl-.*")
_NON_COMMERCIAL = re.compile(r".*(^|[^a-z])nc([^a-z]|$).*|.*non-?commercial.*|.*research.*|mnpl.*|mrl.*")
_VENDOR = re.compile(r"(llama|gemma|qwen|deepseek|falcon|grok|nvidia|lfm|exaone|openrail|bigscience|creativeml)")


def licence(source: Source) -> str | None:
    """Return the licence that the source's own card or configuration names; None when neither names one.

    Where the card says ``other``, its ``license_name`` counts.
    """
    card = card_metadata(source)
    for name in (card.get("license_name") if card.get("license") == "other" else None, card.get("license")):
        if isinstance(name, str) and name:
            return name
        if isinstance(name, list) and name and all(isinstance(entry, str) for entry in name):
            return " and ".join(name)
    if source.outline.stated is not None:
        return None  # a well-known model's config.json has no such key
    stated = getattr(source.config, "license", None)
    return stated if isinstance(stated, str) and stated else None


def licence_fields(source: Source) -> dict[str, str | list[str]]:
    """Return what a source states about its licence, as front matter that a merge can repeat; nothing if it does not.

    A link to a file in the source's own repository is left out, because a merge has no copy of the file.
    """
    card = card_metadata(source)
    stated = card.get("license")
    if not (isinstance(stated, str | list) and stated and all(isinstance(entry, str) for entry in stated)):
        other = licence(source)
        return {} if other is None else {"license": other}
    fields: dict[str, str | list[str]] = {"license": stated}
    for key in ("license_name", "license_link") if stated == "other" else ():
        value = card.get(key)
        if isinstance(value, str) and (key == "license_name" or value.startswith("https://")):
            fields[key] = value
    return fields


def kind_of(name: str | None) -> Kind:
    """Return the kind of terms that a licence's name stands for."""
    if name is None:
        return "unknown"
    text = name.lower().replace("_", "-").replace(" ", "-")
    if _NON_COMMERCIAL.fullmatch(text):
        return "non-commercial"
    if _COPYLEFT.fullmatch(text):
        return "copyleft"
    if _PERMISSIVE.fullmatch(text):
        return "permissive"
    return "vendor" if _VENDOR.match(text) else "unknown"


def conflicts(licences: Mapping[str, str | None]) -> list[str]:
    """Return a sentence for each pair of terms that conflict, or that bind more than their own model.

    Parameters
    ----------
    licences
        Licences by the model's name, as `licence` returns them.
    """
    kinds = {name: kind_of(stated) for name, stated in licences.items()}
    found = []
    closed = _of(kinds, "non-commercial")
    open_ = [name for name in kinds if kinds[name] in ("permissive", "copyleft", "vendor")]
    if closed and open_:
        found.append(
            f"{_shown(closed, licences)}: non-commercial terms apply to the whole merge, {_names(open_)} included"
        )
    vendors = _of(kinds, "vendor")
    families = {match[1] for name in vendors if (match := _VENDOR.match(str(licences[name]).lower()))}
    if len(families) > 1:
        found.append(f"{_shown(vendors, licences)}: the terms of several vendors apply to the merge at once")
    copyleft = _of(kinds, "copyleft")
    if copyleft and (closed or vendors):
        found.append(
            f"{_shown(copyleft, licences)}: forbids further restrictions, and "
            f"{_shown([*closed, *vendors], licences)} has some; such a merge may not be distributed"
        )
    return found


def _of(kinds: Mapping[str, Kind], kind: Kind) -> list[str]:
    return [name for name in kinds if kinds[name] == kind]


def _names(names: list[str]) -> str:
    return ", ".join(names)


def _shown(names: list[str], licences: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} ({licences[name]})" for name in names)


def card_metadata(source: Source) -> dict[str, Any]:
    """Return the front matter of a source's own model card; nothing where there is none, or it cannot be read."""
    if not (source.path / "README.md").is_file():
        return {}
    try:
        with (source.path / "README.md").open(encoding="utf-8") as file:
            text = file.read(MAX_CARD)
    except (OSError, UnicodeDecodeError):
        return {}
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, flags=re.DOTALL)
    try:
        values = yaml.safe_load(match.group(1)) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist
        return {}
    return values if isinstance(values, dict) else {}
