"""Writing checkpoints: complete or not at all."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from evomerge.cli.merge import merge
from evomerge.files import atomic
from evomerge.files.atomic import FileError
from evomerge.merging.checks import preflight
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.output import writer
from evomerge.merging.output.writer import OutputError, rehearse, write_checkpoint
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.tokenizer_folder import TokenizerFolder
from search_spaces.recipes import mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.parameter_values import constant
from search_spaces.recipes.recipe import Recipe, Slice, Source
from tests.merging.tiny import TINY


def average(family: Any, **changes: Any) -> Recipe:
    sources = tuple(Source(path, (0, family.layers), (("weight", constant(1.0)),)) for path in family.references[1:])
    return Recipe("linear", (Slice(sources),), **{"base_model": family.base, "out_dtype": "bfloat16", **changes})


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_holds_everything(llama: Any, tmp_path: Path) -> None:
    out = write_checkpoint(llama.engine(), average(llama), tmp_path / "deep" / "out")
    assert left_over(out) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "mergekit_config.yml",
        "model.safetensors",
        "recipe.yaml",
    ]
    assert left_over(out.parent) == ["out"]
    assert mergekit_yaml.read(out / "recipe.yaml") == average(llama)
    assert (out / "mergekit_config.yml").read_text() == (out / "recipe.yaml").read_text()


def test_mergekits_file_is_there_where_mergekit_builds_the_same_model(llama: Any, tmp_path: Path) -> None:
    thinned = (("density", constant(0.5)), ("weight", constant(1.0)))
    sources = [Source(path, (0, llama.layers), () if path == llama.base else thinned) for path in llama.references]
    recipe = replace(average(llama), merge_method="dare_linear", seed=3, slices=(Slice(tuple(sources)),))
    out = write_checkpoint(llama.engine(), recipe, tmp_path / "out")
    assert "mergekit_config.yml" not in left_over(out)
    assert "mergekit-yaml" not in (out / "README.md").read_text()


def test_mergekits_file_is_not_there_where_mergekit_does_not_know_the_architecture(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = llama.references[:2]
    slices = (Slice((Source(first, (0, 2)),)), Slice((Source(second, (2, llama.layers)),)))
    recipe = Recipe("passthrough", slices, out_dtype="bfloat16")
    assert "mergekit_config.yml" in left_over(write_checkpoint(llama.engine(), recipe, tmp_path / "known"))
    monkeypatch.setattr(Model, "definition", None)
    assert "mergekit_config.yml" not in left_over(write_checkpoint(llama.engine(), recipe, tmp_path / "other"))


def test_mergekits_file_is_not_there_where_mergekit_drops_tensors(tmp_path: Path, make_models: Any) -> None:
    config = LlamaConfig(**{**TINY, "num_hidden_layers": 1}, mlp_bias=True)
    base, expert = make_models(tmp_path, config, 2)
    engine = MergeEngine({path: Checkpoint.open(path) for path in (base, expert)}, base=base)
    sources = tuple(Source(path, None, (("weight", constant(1.0)),)) for path in (base, expert))
    out = write_checkpoint(engine, Recipe("linear", (Slice(sources),), out_dtype="bfloat16"), tmp_path / "out")
    assert "mergekit_config.yml" not in left_over(out)
    said = "mergekit does not build the same weights: mergekit 0.1.5 drops 3 tensors, such as model.layers.0.mlp"
    assert said in (out / "README.md").read_text().replace("\\", "")


def test_empty_folder_is_used(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (write_checkpoint(llama.engine(), average(llama), tmp_path / "out") / "config.json").is_file()


def test_written_folder_is_a_source(llama: Any, tmp_path: Path) -> None:
    engine = llama.engine()
    out = write_checkpoint(engine, average(llama), tmp_path / "out")
    merged = Checkpoint.open(str(out))
    module = engine.apply(average(llama))
    for name in merged.names:
        assert torch.equal(merged.tensor(name).float(), module.get_parameter(name))


def test_tokenizer_is_copied_as_it_is(llama: Any, tmp_path: Path) -> None:
    paths = []
    for index, reference in enumerate(llama.references):
        path = Path(shutil.copytree(reference, tmp_path / f"m{index}"))
        (path / "tokenizer.json").write_text(f'{{"of": {index}}}')
        (path / "chat_template.jinja").write_text(f"template {index}")
        paths.append(str(path))
    engine = MergeEngine({path: Checkpoint.open(path) for path in paths}, base=paths[0])
    recipe = average(llama).with_models(dict(zip(llama.references, paths, strict=True)))
    first = write_checkpoint(engine, recipe, tmp_path / "a")
    assert (first / "tokenizer.json").read_text() == '{"of": 0}'
    assert (first / "chat_template.jinja").read_text() == "template 0"
    second = write_checkpoint(engine, recipe, tmp_path / "b", tokenizer_from=paths[2])
    assert (second / "tokenizer.json").read_text() == '{"of": 2}'


def test_mergekit_is_asked_about_the_model_that_gives_the_architecture(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not about the one that gives the tokenizer."""
    asked: list[str] = []
    monkeypatch.setattr(writer, "as_mergekit_finds", lambda source, recipe: asked.append(source.reference))
    write_checkpoint(llama.engine(), average(llama), tmp_path / "out", tokenizer_from=llama.references[2])
    assert asked == [llama.base]


def test_chat_template_of_the_recipe(llama: Any, tmp_path: Path) -> None:
    recipe = average(llama, chat_template="{{ messages }}")
    out = write_checkpoint(llama.engine(), recipe, tmp_path / "out")
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(RecipeError, match="'vicuna' is not a template; write Jinja text, auto, or one of alpaca"):
        write_checkpoint(llama.engine(), average(llama, chat_template="vicuna"), tmp_path / "other")


# --- what goes wrong ---


def test_existing_folder_is_kept(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FileError, match=r"the folder exists and is not empty; name a new one or remove it"):
        write_checkpoint(llama.engine(), average(llama), tmp_path / "out")
    assert left_over(tmp_path / "out") == ["precious"]


def test_full_disk_is_noticed_before_writing(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(FileError, match=r"the disk has 0.00 GB free and 0.02 GB are needed; free some space or name"):
        write_checkpoint(llama.engine(), average(llama), tmp_path / "out")
    assert left_over(tmp_path) == []


def test_full_disk_is_noticed_before_any_weight_is_read(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(mergekit_yaml.dump(average(llama)), encoding="utf-8")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    monkeypatch.setattr(preflight, "_check_finite", lambda *_: pytest.fail("the scan has begun"))
    with pytest.raises(FileError, match=r"the disk has 0.00 GB free and 0.02 GB are needed; free some space or name"):
        merge(tmp_path / "recipe.yaml", tmp_path / "out", "cpu")
    assert left_over(tmp_path) == ["recipe.yaml"]


def test_safetensors_own_error_for_a_full_disk(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError('Error while serializing: I/O error: Os { code: 28, message: "No space left on device" }')

    monkeypatch.setattr(writer, "write_shards", fail)
    with pytest.raises(FileError, match=r"the disk became full while writing"):
        write_checkpoint(llama.engine(), average(llama), tmp_path / "out")
    assert left_over(tmp_path) == []


def test_infinite_weights_are_not_written(llama: Any, tmp_path: Path) -> None:
    """Weights of 1e6 times the models' are floats in the merge's float32, and infinite in float16."""
    sources = tuple(Source(path, (0, 4), (("weight", constant(1e7)),)) for path in llama.references[1:])
    recipe = Recipe("linear", (Slice(sources, (("normalize", constant(False)),)),), out_dtype="float16")
    with pytest.raises(OutputError, match=r"weight: \d+ merged weights are infinite or NaN in float16, so nothing is"):
        write_checkpoint(llama.engine(), recipe, tmp_path / "out")
    assert left_over(tmp_path) == []
    write_checkpoint(llama.engine(), replace(recipe, out_dtype="bfloat16"), tmp_path / "out")


def test_a_rehearsal_tries_everything_but_the_weights(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.tempfile, "tempdir", str(tmp_path))
    source = llama.checkpoints[llama.base]
    seen: list[str] = []
    monkeypatch.setattr(TokenizerFolder, "copy_to", lambda _, folder: seen.extend(left_over(folder)))
    rehearse(source)
    assert seen == ["config.json", "generation_config.json"]
    assert left_over(tmp_path) == []

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("The generation config instance is invalid")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuse)
    with pytest.raises(OutputError, match=r"does not save its configuration \(The generation .*\); correct its config"):
        rehearse(source)


def test_names_of_code_are_not_written(llama: Any, tmp_path: Path) -> None:
    base = Path(shutil.copytree(llama.base, tmp_path / "base"))
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((base / name).read_text()) if (base / name).is_file() else {}
        (base / name).write_text(json.dumps(values | {"auto_map": {"AutoConfig": "configuration_x.XConfig"}}))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    checkpoints = llama.checkpoints | {str(base): Checkpoint.open(str(base))}
    recipe = average(llama, base_model=str(base))
    out = write_checkpoint(MergeEngine(checkpoints, base=str(base)), recipe, tmp_path / "out")
    assert "auto_map" not in (out / "config.json").read_text()
    assert "auto_map" not in (out / "tokenizer_config.json").read_text()
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"
