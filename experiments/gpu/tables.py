"""The tables of the README, from the results; a part that failed shows its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.harness import Results

Rows = list[Sequence[object]]


def tables(results: Results) -> list[str]:
    """Return the tables in the order of the README: merges, placements, generation, and all else."""
    parts = results["parts"]
    return [
        _table(
            (
                "method",
                "prepare, s",
                "apply, ms",
                "limit, ms",
                "of the limit",
                "moved / limit",
                "peak / bound",
                "differs from the CPU by",
            ),
            _rows(parts, "apply", _apply),
        ),
        _table(
            ("sources", "first, ms", "apply, ms", "sources read per second", "kept on the device"),
            _rows(parts, "placements", _placements),
        ),
        _table(
            ("answers", "by", "tokens per second", "the same as ours"),
            _rows(parts, "generation", _generation),
        ),
        _table(("part", "found"), [("device", _device(parts)), *_others(parts)]),
    ]


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def _rows(parts: Mapping[str, Any], name: str, rows: Callable[[Mapping[str, Any]], Rows]) -> Rows:
    found = parts.get(name, {"error": "not run"})
    return [(found["error"],)] if "error" in found else rows(found)


def _apply(found: Mapping[str, Any]) -> Rows:
    return [
        (
            row["method"],
            f"{row['prepare']:.2f}",
            f"{1e3 * row['apply']:.2f}",
            f"{1e3 * row['limit']:.2f}",
            f"{row['share']:.0%}",
            f"{row['moved']:.1f}",
            f"{_size(row['peak_bytes'])} / {_size(row['planned_bytes'])}",
            f"{row['differs']:.1g}",
        )
        for row in found["methods"]
    ]


def _placements(found: Mapping[str, Any]) -> Rows:
    return [
        (
            row["place"],
            f"{1e3 * row['first']:.2f}",
            f"{1e3 * row['apply']:.2f}",
            f"{_size(row['sources_per_second'])} (a copy from pinned memory: {_size(found['upload'])})",
            _size(row["device_bytes"]),
        )
        for row in found["places"]
    ]


def _generation(found: Mapping[str, Any]) -> Rows:
    rows: Rows = []
    for kind in ("equal", "unequal"):
        for way, row in ((way, row) for way, row in found[kind].items() if isinstance(row, Mapping)):
            speed = row.get("error") or f"{row['tokens_per_second']:,.0f}"
            rows.append((f"{kind} lengths", way, speed, row.get("same_answers", "")))
    return rows


def _others(parts: Mapping[str, Any]) -> Rows:
    said: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "search": lambda f: (
            f"{f['evaluations']} evaluations, {f['answers']} answers in {f['seconds']:.1f} s; candidates, merged and "
            f"scored, {f['tokens_per_second']:,.0f} tokens per second; sources {f['placement']}; "
            f"at most {_size(f['peak_bytes'])}, merging {_size(f['planned_bytes'])} by `plan`"
        ),
        "gradient_step": lambda f: (
            f"{f['rows']} rows, {f['coefficients']} coefficients: {1e3 * f['seconds']:.1f} ms, of which the merge "
            f"{1e3 * f['merge']:.1f}; {_size(f['peak_bytes'])} at the peak, {_size(f['held_bytes'])} before, "
            f"activations {_size(f['expected_activation_bytes'])} by `plan`; derivatives differ from the CPU's by "
            f"{f['differs']:.1g}"
        ),
        "out_of_memory": lambda f: (
            f"batch of {f['batch_before']} halved to {f['batch_after']}, scores differ by {f['differs']:.1g}, "
            f"the next candidate: {f['next']}"
        ),
        "not_finite": lambda f: f"{f['reason']}; the next candidate: {f['next']}",
        "resume": lambda f: (
            f"stopped at {f['stopped_at']} of {f['evaluations']} evaluations, then "
            f"{'the same recipe' if f['same_recipe'] else 'another recipe'}; scores differ by {f['differs']:.1g}"
        ),
    }
    return [(name, _said(parts.get(name, {"error": "not run"}), say)) for name, say in said.items()]


def _said(found: Mapping[str, Any], say: Callable[[Mapping[str, Any]], str]) -> str:
    return str(found["error"]) if "error" in found else f"{say(found)} ({found['wall']} s)"


def _device(parts: Mapping[str, Any]) -> str:
    about = next((part["device"] for part in parts.values() if "device" in part), {"device": "unknown"})
    return ", ".join(str(value) for value in about.values())


def _size(count: float | None) -> str:
    return "not measured" if count is None else f"{count / 1e9:.2f} GB"
