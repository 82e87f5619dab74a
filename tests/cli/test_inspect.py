"""`evomerge inspect` on the zoo and on models that cannot be merged."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.cli.main import main

ZOO = Path(__file__).parent.parent.parent / "experiments" / "zoo" / "models"


@pytest.fixture
def inspect(monkeypatch, capsys):
    """Run the command here in this process; return its exit code and output."""

    def inspect(*arguments):
        monkeypatch.setattr(sys, "argv", ["evomerge", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out + printed.err

    return inspect


@pytest.fixture
def unrelated(tmp_path):
    """Return a copy of an expert of the zoo with random weights, another chat template and another licence."""
    folder = Path(shutil.copytree(ZOO / "ja", tmp_path / "unrelated"))
    stored = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    stored = {
        name: values if "norm" in name else torch.randn(values.shape, generator=generator).to(values.dtype)
        for name, values in stored.items()
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    return folder


def test_tables(inspect):
    code, text = inspect(ZOO / "base", ZOO / "ops", ZOO / "ja")
    assert code == 0
    assert "LlamaForCausalLM" in text
    assert "similarity, from all weights" in text
    assert "cosine / Pearson of the deltas" in text
    assert "cannot be merged" not in text


def test_json(inspect):
    code, text = inspect(ZOO / "base", ZOO / "ops", ZOO / "ja", "--json", "--quick")
    found = json.loads(text)
    assert code == 0
    assert set(found["models"]) == {"base", "ops", "ja"}
    assert found["models"]["ops"]["layers"] == 6
    assert found["vocabulary"]["ops"] == {"shared": 133, "same_id": 133, "only_here": 0, "only_in_base": 0}
    similarity = found["similarity"]
    assert 0 < similarity["entries"] <= similarity["total"]
    assert 0.1 < similarity["experts"]["ops"]["relative_norm"] < 0.4
    assert len(similarity["experts"]["ops"]["delta_norms"]) == len(similarity["groups"]) == 8
    assert 0.1 < similarity["cosines"][0][1] < 0.4
    assert found["obstacles"] == []


def test_what_stands_in_the_way(inspect, unrelated, tmp_path):
    copy = Path(shutil.copytree(ZOO / "base", tmp_path / "base"))
    (copy / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    code, text = inspect(copy, unrelated)
    assert code == 1
    assert "cannot be merged: unrelated: its weights do not come from the base's (cosine: attention" in text
    assert "warning: unrelated: it has a chat template and base has none; a merge has none either" in text
    assert "warning: unrelated (cc-by-nc-4.0): non-commercial terms apply to the whole merge, base included" in text
    code, text = inspect(copy, unrelated, "--allow-unrelated")
    assert code == 0
    assert "warning: unrelated: its weights do not come from the base's" in text


def test_other_shapes_are_named_and_the_rest_is_shown(inspect, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ZOO / "base")
    model.resize_token_embeddings(140)
    model.save_pretrained(tmp_path / "resized")
    code, text = inspect(ZOO / "base", tmp_path / "resized")
    assert code == 1
    assert "cannot be merged: resized: model.embed_tokens.weight has shape [140, 96] here and [" in text
    assert "set vocabulary: base, union, first or pad" in text
    assert "LlamaForCausalLM" in text


def test_a_vocabulary_for_models_whose_tokens_have_other_names(inspect, tmp_path):
    other = Path(shutil.copytree(ZOO / "ops", tmp_path / "other"))
    data = json.loads((other / "tokenizer.json").read_text())
    data["model"]["vocab"]["<|im_start|>"] = data["model"]["vocab"].pop("sort")
    (other / "tokenizer.json").write_text(json.dumps(data))
    code, text = inspect(ZOO / "base", other, "--quick")
    assert code == 1
    assert "cannot be merged: other: its tokenizer calls row 7 '<|im_start|>', and that of base calls it 'sort'" in text
    assert "set vocabulary: pad" in text
    code, text = inspect(ZOO / "base", other, "--quick", "--vocabulary", "pad", "--json")
    assert code == 0
    found = json.loads(text)
    assert found["obstacles"] == []
    assert found["vocabulary"]["other"]["only_here"] == 1  # the models' own, not the merge's


def test_a_model_named_twice(inspect):
    code, text = inspect(ZOO / "base", ZOO / "base")
    assert code == 2
    assert f"inspect: {ZOO / 'base'} is named twice; name each model once" in text
