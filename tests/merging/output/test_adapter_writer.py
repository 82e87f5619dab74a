"""Writing adapters: what goes wrong on the disk is said as it is for whole models."""

from __future__ import annotations

import errno
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.files import atomic
from evomerge.files.atomic import FileError
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output.adapter_writer import write_adapter
from evomerge.merging.output.writer import write_checkpoint
from evomerge.merging.sources.open_sources import open_sources
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.recipe import Recipe
from tests.conftest import required

required("peft")
Spoil = Callable[[Path, pytest.MonkeyPatch], Path]


@pytest.fixture(scope="module")
def merge(families: Any, make_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[MergeEngine, Recipe]:
    base = families("llama").base
    folder = tmp_path_factory.mktemp("adapters")
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    references = [str(make_adapter(base, folder / f"a{seed}", seed=seed, **settings)[0]) for seed in (1, 2)]
    sources = open_sources({name: name for name in (base, *references)}, base)
    models = [{"model": reference, "parameters": {"weight": 0.5}} for reference in references]
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "models": models}
    data = recipe | {"dtype": "bfloat16", "evomerge": {"adapters": "core"}}
    return MergeEngine(sources, base=base), mergekit_yaml.build(data)


def parent_is_a_file(folder: Path, _: pytest.MonkeyPatch) -> Path:
    (folder / "file").write_text("x")
    return folder / "file" / "out"


def taken(folder: Path, _: pytest.MonkeyPatch) -> Path:
    (folder / "out").mkdir()
    (folder / "out" / "precious").write_text("x")
    return folder / "out"


def small_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    return folder / "out"


def full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    return folder / "out"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (parent_is_a_file, "cannot be written (Not a directory); check the folder's permissions and its disk, or name"),
        (taken, "the folder exists and is not empty; name a new one or remove it"),
        (small_disk, "the disk has 0.00 GB free and 0.02 GB are needed; free some space or name another place"),
        (full_disk, "the disk became full while writing; free some space or name another place"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_adapter_fails_with_the_sentence_of_a_whole_model(
    merge: tuple[MergeEngine, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, sentence: str
) -> None:
    engine, recipe = merge
    out = spoil(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    for write in (write_checkpoint, write_adapter):
        with pytest.raises(FileError) as caught:
            write(engine, recipe, out)
        assert str(caught.value).startswith(f"{out}: {sentence}")
        assert sorted(tmp_path.rglob("*")) == before


def test_a_written_adapter_is_complete(merge: tuple[MergeEngine, Recipe], tmp_path: Path) -> None:
    engine, recipe = merge
    written = write_adapter(engine, recipe, tmp_path / "deep" / "out")
    assert written.rank == 4
    names = sorted(path.name for path in (tmp_path / "deep" / "out").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.yaml"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
