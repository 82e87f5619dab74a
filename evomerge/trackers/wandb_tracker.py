"""The `wandb` tracker: a run of Weights & Biases, by default offline, in the run directory.

`wandb sync RUN/wandb/offline-run-*` uploads an offline run; each session of the search is a folder of its own there,
all under one run of Weights & Biases (add `--append` for the later ones).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from pydantic import BaseModel, ConfigDict

from evomerge.extras import require
from evomerge.trackers.base import register_tracker
from evomerge.trackers.scalars import ScalarTracker, identity


@register_tracker
class WandbConfig(BaseModel):
    """Scalars, the search file, the best recipe and the report for Weights & Biases; needs the extra `wandb`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["wandb"] = "wandb"
    project: str = "evomerge"
    """The project of Weights & Biases."""
    entity: str | None = None
    """The user or team there. None: that of the account."""
    name: str | None = None
    """Name of the run there. None: that of the run directory."""
    mode: Literal["offline", "online"] = "offline"
    """offline: nothing leaves the machine until `wandb sync` uploads it."""

    def check(self) -> None:
        """Raise MissingExtraError unless the package is installed."""
        require("wandb", "wandb", "trackers: kind wandb")

    def build(self) -> ScalarTracker:
        """Return the tracker."""
        return ScalarTracker(WandbStore(self))


class WandbStore:
    """One run of Weights & Biases; what earlier sessions have written is read from their transaction logs.

    Parameters
    ----------
    config
        Its project, name and mode.
    """

    def __init__(self, config: WandbConfig) -> None:
        self._config = config

    def open(self, run: Path, config: Mapping[str, Any]) -> Mapping[str, int]:
        """Begin a session of the run."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports go to a server
        import wandb

        name = identity(run)
        last: dict[str, int] = {}
        for file in sorted((run / "wandb").glob(f"*run-*-{name}/run-{name}.wandb")):
            for step, scalars in history(file):
                last |= dict.fromkeys(scalars, step)
        while any((run / "wandb").glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-{name}")):
            time.sleep(0.1)  # folders are named by the second, and a second session would write into the first one's
        self._run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            name=self._config.name or run.resolve().name,
            id=name,
            dir=str(run.resolve()),  # its service may work in another folder
            mode=self._config.mode,
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                login_timeout=WAIT,  # nobody may be there to answer
                init_timeout=3 * WAIT,
            ),
        )
        return last

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers."""
        # Without `commit`, which would end the step: the final table has the step of the last evaluation.
        self._run.log(dict(scalars), step=step, commit=False)

    def keep(self, files: Sequence[Path]) -> None:
        """Keep files with the run of Weights & Biases."""
        for file in files:  # as copies: links would show what later sessions have written
            copy = shutil.copy(file, self._run.dir)
            self._run.save(copy, base_path=self._run.dir, policy="now")

    def close(self, finished: bool) -> None:
        """End the session."""
        log = Path(self._run.settings.sync_file)
        self._run.finish(exit_code=0 if finished else 1)
        until = time.monotonic() + WAIT
        while time.monotonic() < until and "exit" not in _kinds(log):
            time.sleep(0.05)  # another process writes the log, and this one may resume the run at once


WAIT = 10.0
"""Seconds that a session waits for its login, and at its end for its transaction log to be written."""
_FILE_HEADER, _BLOCK, _HEADER = 7, 32_768, 7  # bytes
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds of parts; 3 is in between


def history(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the steps in a transaction log of Weights & Biases with their numbers, as far as the log is whole."""
    for parsed in _parsed(file):
        if parsed.WhichOneof("record_type") != "history":
            continue
        values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in parsed.history.item}
        yield int(values["_step"]), {name: value for name, value in values.items() if not name.startswith("_")}


def _kinds(file: Path) -> set[str]:
    """Return what kinds of records a transaction log has."""
    return {parsed.WhichOneof("record_type") for parsed in _parsed(file)} if file.is_file() else set()


def _parsed(file: Path) -> Iterator[Any]:
    """Yield the records of a transaction log as Weights & Biases defines them."""
    from wandb.proto import wandb_internal_pb2

    for record in _records(file.read_bytes()):
        parsed = wandb_internal_pb2.Record()
        parsed.ParseFromString(record)
        yield parsed


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which has a header of its own; stop at the first torn part.

    A part has a checksum (4 bytes), a length (2), a kind (1) and its bytes, and is within one block. See
    https://github.com/google/leveldb/blob/main/doc/log_format.md.
    """
    at, record = _FILE_HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # too little is left of the block
            at += _BLOCK - at % _BLOCK
            continue
        checksum, length, kind = int.from_bytes(data[at : at + 4], "little"), *_small(data[at + 4 : at + 7])
        part = data[at + _HEADER : at + _HEADER + length]
        if len(part) < length or crc32(part, crc32(bytes([kind]))) != checksum:
            return
        at += _HEADER + length
        record = part if kind in (_FULL, _FIRST) else record + part
        if kind in (_FULL, _LAST):
            yield record


def _small(raw: bytes) -> tuple[int, int]:
    return int.from_bytes(raw[:2], "little"), raw[2]
