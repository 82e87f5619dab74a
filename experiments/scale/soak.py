"""``python -m experiments.scale.soak`` watches whether memory, or anything else, grows while a search continues.

- *worker*: one worker scores 10,000 different recipes of the zoo's small models.
- *search*: ``evomerge search`` with M2N2 on Ray's workers, over models of about 1 GiB each that are made for it, for as
  many hours as ``--hours`` says. Every few seconds the driver and its workers are looked at from outside.

Memory is each process's own (anonymous) memory: pages of the sources' files are shared and can be dropped at any time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.runs.run import Run, is_run
from experiments.harness import Experiment, Results
from experiments.machine import machine
from experiments.scale.processes import alive, descendants, handles, memory, shared_files, title

FOLDER = Path(__file__).parent
ZOO = FOLDER.parent / "zoo"
NAMES = ("base", "one", "two")
TASK, ITEMS = "zoo_target_mc", 24
"""What is asked, and how many items of each split: merging, not scoring, is to take the time."""
HIDDEN, INTERMEDIATE, HEADS = 1024, 4096, 16
EVERY = 10.0
"""Seconds between two looks at a search."""
WORKER = "ray::Actor"
"""How Ray titles the process of a worker."""
CANDIDATES = 10_000
SETTLED = 0.2
"""Share of the time after which growth is counted: caches are full then."""
ENDS = 120.0
"""Seconds in which what a search has started must end after it."""


def config(folder: Path, models: dict[str, str], items: int) -> dict[str, Any]:
    """Write a few items of the zoo's task into a folder; return the search for it that both parts make."""
    folder.mkdir()
    for file in (ZOO / "tasks" / "documents.py", *(ZOO / "tasks").glob("*.template"), ZOO / "tasks" / f"{TASK}.yaml"):
        shutil.copy(file, folder)
    lines = (ZOO / "tasks" / f"{TASK}.jsonl").read_text(encoding="utf-8").splitlines()
    splits = [[line for line in lines if json.loads(line)["split"] == split] for split in ("validation", "test")]
    (folder / f"{TASK}.jsonl").write_text(
        "\n".join(line for split in splits for line in split[:ITEMS]), encoding="utf-8"
    )
    return {
        "models": models,
        "space": {"layers_per_group": 2},
        "strategy": {"kind": "m2n2", "archive": 16},
        "fitness": {
            "tasks": [{"task": TASK}],
            "include_path": [str(folder)],
            "subset": {"items": items},
        },
        "budget": {"evaluations": 1_000_000},
    }


def measure_worker(folder: Path, candidates: int) -> dict[str, Any]:
    """Score so many random recipes with one worker in this process; return its memory now and then."""
    from evomerge.config.load import load
    from evomerge.search.problem import Problem
    from evomerge.search.scoring_workers import local_worker
    from evomerge.workers.base import Request

    models = {name: str(ZOO / "models" / name) for name in ("base", "ops", "ja")}
    (folder / "search.yaml").write_text(
        yaml.safe_dump(config(folder / "tasks", models, 4) | {"workers": {"threads": 1}})
    )
    problem = Problem(load(folder / "search.yaml"))
    worker, rng, me = local_worker(problem).ready(), np.random.default_rng(0), os.getpid()
    items, looks, failed = tuple(problem.subset), [], 0
    started = time.monotonic()
    for done in range(candidates + 1):
        if done % max(1, candidates // 20) == 0:
            looks.append({"candidates": done, "own_mib": round(memory(me)["own"], 1), "handles": handles(me)})
            print(looks[-1], flush=True)
        recipe = problem.space.decode(rng.uniform(size=problem.space.dimension))
        failed += worker.evaluate(Request(recipe, items)).status != "ok"
    return {"candidates": candidates, "failed": failed, "seconds": round(time.monotonic() - started), "looks": looks}


def write_models(folder: Path, gibibytes: float) -> dict[str, str]:
    """Write a base and two experts near it, of so many GiB each, with the zoo's tokenizer; return their folders.

    Those that are in the folder already are left as they are.
    """
    models = {name: str(folder / name) for name in NAMES}
    if all((folder / name / "tokenizer.json").exists() for name in NAMES):
        return models

    import torch
    from safetensors.torch import save_file

    given = json.loads((ZOO / "models" / "base" / "config.json").read_text())
    per_layer = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
    layers = max(1, round(gibibytes * 2**30 / 2 / per_layer))
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HIDDEN // HEADS}
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
    }
    shapes = {
        "model.embed_tokens.weight": (given["vocab_size"], HIDDEN),
        "lm_head.weight": (given["vocab_size"], HIDDEN),
    }
    shapes["model.norm.weight"] = (HIDDEN,)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes |= {f"{prefix}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    base: dict[str, Any] = {}
    for seed, name in enumerate(NAMES):
        place, rng = folder / name, torch.Generator().manual_seed(seed)
        place.mkdir(parents=True)
        tensors = {}
        for tensor, shape in shapes.items():
            noise = torch.randn(shape, generator=rng)
            middle = base[tensor].float() if base else torch.full(shape, float(len(shape) == 1))
            tensors[tensor] = (middle + (0.002 if base else 0.02) * noise * (len(shape) > 1)).to(torch.bfloat16)
        base = base or tensors
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        (place / "config.json").write_text(json.dumps(given | sizes | heads, indent=1))
        for file in (ZOO / "models" / "base").iterdir():
            if file.name not in ("config.json", "model.safetensors"):
                shutil.copy(file, place / file.name)
    return models


def measure_search(folder: Path, hours: float, models: dict[str, str], workers: int) -> dict[str, Any]:
    """Search for so many hours; return what the processes used now and then, and what they left."""
    search = config(folder / "tasks", models, 8) | {"workers": {"kind": "ray", "count": workers}}
    search["budget"]["hours"] = hours
    (folder / "search.yaml").write_text(yaml.safe_dump(search))
    run, said = folder / "run", (folder / "said").open("w")
    command = [sys.executable, "-m", "evomerge", "search", str(folder / "search.yaml"), "--run", str(run)]
    driver = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    looks: list[dict[str, Any]] = []
    started, seen, files = time.monotonic(), set[int](), set[Path]()
    try:
        while driver.poll() is None:
            time.sleep(EVERY)
            below = descendants(driver.pid)
            seen.update(below)
            files.update(file for one in (driver.pid, *below) for file in shared_files(one))
            look = looked(driver.pid, below, run, time.monotonic() - started)
            if len(look["workers_mib"]) == workers and look["candidates"]:
                looks.append(look)
                print(look, flush=True)
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            driver.wait()
    if driver.returncode:
        raise SystemExit(f"the search ended with {driver.returncode}:\n{(folder / 'said').read_text()[-2000:]}")
    limit = time.monotonic() + ENDS
    while (left := sum(map(alive, seen)) + sum(file.exists() for file in files)) and time.monotonic() < limit:
        time.sleep(1)
    size = (Path(models["base"]) / "model.safetensors").stat().st_size / 2**30
    return {"hours": hours, "gibibytes": round(size, 2), "workers": workers, "left": left, "looks": thinned(looks)}


def looked(driver: int, below: Sequence[int], run: Path, seconds: float) -> dict[str, Any]:
    """Return what a search uses now."""
    workers = sorted(one for one in below if title(one).startswith(WORKER))
    count = 0
    if is_run(run):
        with Run.read(run) as recorded:
            count = recorded.count() // 2
    return {
        "minutes": round(seconds / 60, 2),
        "candidates": count,
        "driver_mib": round(memory(driver)["own"], 1),
        "workers_mib": [round(memory(one)["own"], 1) for one in workers],
        "driver_handles": handles(driver),
        "workers_handles": [handles(one) for one in workers],
        "run_mib": round(sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / 2**20, 2),
    }


def thinned(looks: Sequence[dict[str, Any]], most: int = 60) -> list[dict[str, Any]]:
    """Return at most so many of the looks, evenly spread, the last included."""
    step = max(1, -(-len(looks) // most))
    return [*looks[: len(looks) - 1 : step], *looks[-1:]]


def growth(looks: Sequence[dict[str, Any]], value: str, place: int | None = None) -> tuple[float, float]:
    """Return a value after the start has settled, and at the end, each the median of three looks."""
    found = [look[value] if place is None else look[value][place] for look in looks]
    settled = found[int(SETTLED * len(found)) :]
    return float(np.median(settled[:3])), float(np.median(settled[-3:]))


def tables(results: Results) -> list[str]:
    """Return the README's table: memory and files after the start, and at the end."""
    lines = [
        "| | process | candidates | MiB after the start | MiB at the end | files open |",
        "|---|---|---|---|---|---|",
    ]
    if worker := results.get("worker"):
        before, after = growth(worker["looks"], "own_mib")
        files = " → ".join(f"{number:.0f}" for number in growth(worker["looks"], "handles"))
        lines.append(f"| worker | one worker | {worker['candidates']:,} | {before:.0f} | {after:.0f} | {files} |")
    if search := results.get("search"):
        looks = search["looks"]
        rows = [("driver", "driver", None)] + [(f"Ray worker {n + 1}", "workers", n) for n in range(search["workers"])]
        for name, key, place in rows:
            before, after = growth(looks, f"{key}_mib", place)
            files = " → ".join(f"{number:.0f}" for number in growth(looks, f"{key}_handles", place))
            lines.append(f"| search | {name} | {looks[-1]['candidates']:,} | {before:.0f} | {after:.0f} | {files} |")
    return ["\n".join(lines)]


def figures(results: Results) -> dict[str, str]:
    """Return the figures of the README's sentences."""
    found = {}
    if worker := results.get("worker"):
        found |= {"soak.worker.candidates": f"{worker['candidates']:,}", "soak.worker.date": worker["date"]}
    if search := results.get("search"):
        last = search["looks"][-1]
        found |= {
            "soak.minutes": f"{last['minutes']:.0f}",
            "soak.gibibytes": f"{search['gibibytes']:.2f}",
            "soak.candidates": f"{last['candidates']:,}",
            "soak.run": f"{last['run_mib']:.1f} MiB",
            "soak.left": "nothing" if not search["left"] else str(search["left"]),
            "soak.date": search["date"],
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both parts, or one; write `soak.json`."""
    parser = EXPERIMENT.parser(__doc__, quick="40 candidates, and a minute of searching over models of 0.05 GiB")
    parser.add_argument("--part", choices=("worker", "search"), help="this one only; the results keep the other")
    parser.add_argument("--hours", type=float, default=2.0, help="of searching")
    parser.add_argument("--gib", type=float, default=1.0, help="size of each of the three models")
    parser.add_argument("--workers", type=int, default=2, help="Ray's, of the search")
    parser.add_argument("--models", type=Path, help="folder that keeps the models, with room for three of them")
    given = parser.parse_args(arguments)
    out = EXPERIMENT.destination(given)
    results: Results = EXPERIMENT.read(out) if given.part else {}
    results["machine"] = machine(1, "torch", "ray")
    hours, gib = (1 / 60, 0.05) if given.quick else (given.hours, given.gib)
    measured = {
        "worker": lambda folder: measure_worker(folder, 40 if given.quick else CANDIDATES),
        "search": lambda folder: measure_search(
            folder, hours, write_models(given.models or folder, gib), given.workers
        ),
    }
    for name in [given.part] if given.part else list(measured):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measured[name](Path(folder)) | {"date": date.today().isoformat()}
        EXPERIMENT.publish(out, results)
    print("\n" + tables(results)[0])


EXPERIMENT = Experiment(FOLDER, tables, module="soak", file="soak.json", marker="soak", figures=figures)

if __name__ == "__main__":
    main()
