"""``python -m experiments.gpu`` measures on a GPU in less than 8 minutes; ``--dry`` does the same in tiny on a CPU.

It needs torch, transformers, safetensors and numpy of the machine, and what ``python -m experiments.gpu.wheels`` has
collected. Each part runs in a process of its own; what fails is recorded, and the others go on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.gpu.parts import PARTS, run
from experiments.gpu.tables import tables
from experiments.harness import Experiment, Results
from experiments.machine import machine


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, write the results after each, and print the tables."""
    parser = EXPERIMENT.parser(__doc__, quick="tiny sizes on the CPU, the same code")
    parser.add_argument("--dry", dest="quick", action="store_true", help="the same as --quick")
    parser.add_argument("--part", action="append", choices=list(PARTS)[1:], help="this part only; may be repeated")
    given = parser.parse_args(arguments)
    if not given.quick and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use here; write --dry for tiny sizes on the CPU")
    out = EXPERIMENT.destination(given)
    results: Results = {
        "dry": given.quick,
        "machine": machine(torch.get_num_threads(), "torch", "transformers", "safetensors", "numpy"),
        "parts": {},
    }
    before = EXPERIMENT.read(out)
    if given.part and before.get("dry") == given.quick:
        results["parts"] = before["parts"]
    names = [name for name in PARTS if name == "models" or name in (given.part or PARTS)]
    with tempfile.TemporaryDirectory() as folder:
        for name, found in run(names, Path(folder), dry=given.quick):
            results["parts"][name] = found
            print(f"{name}: {found.get('error', 'done')} ({found['wall']} s)", flush=True)
            EXPERIMENT.write(out, results)
    EXPERIMENT.publish(out, results)
    print("\n" + "\n".join(tables(results)))
    failed = [name for name, found in results["parts"].items() if "error" in found]
    if failed:
        parser.exit(1, f"failed: {', '.join(failed)}\n")


EXPERIMENT = Experiment(Path(__file__).parent, tables)

if __name__ == "__main__":
    main()
