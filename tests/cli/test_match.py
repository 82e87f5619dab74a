"""`evomerge match` on the zoo: what it says of fine-tunes, of a model with shuffled units, and of an unrelated one."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.cli.main import main
from tests.zoo import ZOO

BASE, EXPERT = ZOO / "models" / "base", ZOO / "models" / "ja"


@pytest.fixture
def changed(tmp_path):
    """Return a function that writes the expert with other weights."""

    def changed(change):
        folder = tmp_path / "changed"
        folder.mkdir()
        for path in EXPERT.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        weights = load_file(EXPERT / "model.safetensors")
        save_file({name: change(name, own) for name, own in weights.items()}, folder / "model.safetensors")
        return folder

    return changed


def matched(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evomerge", "match", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    printed = capsys.readouterr()
    return (printed.out + printed.err).splitlines()


def test_fine_tunes_have_their_units_in_order(monkeypatch, capsys, tmp_path):
    lines = matched(monkeypatch, capsys, EXPERT, BASE, tmp_path / "out")
    assert "has its units in the order of" in lines[-1]
    assert lines[-1].endswith("nothing is written")
    assert not (tmp_path / "out").exists()


def test_shuffled_hidden_units_are_put_back(monkeypatch, capsys, tmp_path, changed):
    def change(name, own):
        if ".mlp." not in name:
            return own
        return own.flip(1 if "down_proj" in name else 0).contiguous()

    folder = changed(change)
    lines = matched(monkeypatch, capsys, folder, BASE, tmp_path / "out")
    assert "units moved, cosine with" in lines[-1]
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "out", EXPERT))
    assert all(torch.equal(found[name], own) for name, own in expected.items())
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "out").iterdir()}


def test_models_without_a_common_origin_stay_unrelated(monkeypatch, capsys, tmp_path, changed):
    generator = torch.Generator().manual_seed(0)
    folder = changed(lambda _, own: torch.randn(own.shape, generator=generator).to(own.dtype))
    lines = matched(monkeypatch, capsys, folder, BASE, tmp_path / "out")
    assert lines[-1].startswith("it is still unrelated: models from separate trainings")
