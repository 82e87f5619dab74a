"""``python -m experiments.gpu.wheels FOLDER`` collects what a machine with torch and transformers lacks for evomerge.

It runs where there is a network. There the folder goes with the repository, and without a network
``pip install --no-index --no-deps FOLDER/*.whl`` installs it. Packages that only draw a search's report, and lm-eval
with its own, are left out: together they are larger than what may be carried, and no part needs them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

NEEDED = ("annotated-types", "cma", "psutil", "pydantic", "pydantic-core", "scipy", "typing-inspection")
"""Beyond what torch, transformers and safetensors bring: numpy, jinja2, PyYAML, regex, filelock, tokenizers."""
LARGEST = 60_000_000
"""Bytes that may be carried."""
LOCK = Path(__file__).parents[2] / "requirements.lock"


def pinned(lock: str) -> list[str]:
    """Return ``NAME==VERSION`` of the needed packages from a lock file's text.

    Raises
    ------
    ValueError
        One of them is not in it.
    """
    versions = {
        re.sub(r"[-_.]+", "-", name).lower(): f"{name}=={v}" for name, v in re.findall(r"^(\S+)==(\S+)", lock, re.M)
    }
    missing = [name for name in NEEDED if name not in versions]
    if missing:
        raise ValueError(f"requirements.lock has no {', '.join(missing)}; run `make lock`")
    return [versions[name] for name in NEEDED]


def main(arguments: Sequence[str] | None = None) -> None:
    """Download the wheels; fail if they are too large."""
    parser = ArgumentParser(
        prog="python -m experiments.gpu.wheels", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="the GPU machine's"
    )
    given = parser.parse_args(arguments)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    target = ["--python-version", given.python, "--dest", str(given.folder)]
    subprocess.run([*command, *target, *pinned(LOCK.read_text(encoding="utf-8"))], check=True)
    size = sum(file.stat().st_size for file in given.folder.glob("*.whl"))
    print(f"{size / 1e6:.1f} MB in {given.folder}")
    if size > LARGEST:
        parser.exit(1, f"more than the {LARGEST / 1e6:.0f} MB that may be carried\n")


if __name__ == "__main__":
    main()
