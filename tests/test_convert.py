"""Pickled checkpoints become safetensors files with the same weights, and their programs never run."""

import pickle
import sys
import types

import ldm
import pytest
import tiny
import torch
from safetensors.torch import load_file

from patina.bases.convert import convert
from patina.bases.find import find_base
from patina.errors import PatinaError


class Harm:
    """What a hostile checkpoint holds: opening it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"state_dict": {"state_dict": w}}]
)
def test_the_weights_stay_bit_for_bit(tmp_path, zipped, wrap):
    weights = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).half(),
        "n": torch.arange(3),
        "t": torch.randn(4, 3).T,
        "e": torch.empty(0),
    }
    weights |= {"view": weights["a"][1], "twin": weights["a"]}
    torch.save(wrap(weights), tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    assert convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors") == 7
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == weights.keys()
    assert all(
        torch.equal(found[name], weight) and found[name].dtype == weight.dtype for name, weight in weights.items()
    )


def test_a_converted_checkpoint_is_a_base(tmp_path):
    torch.save({"state_dict": ldm.checkpoint(tiny.sd15())}, tmp_path / "m.ckpt")
    convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors")
    assert find_base(str(tmp_path / "m.safetensors")).family.name == "sd15"


def test_nothing_is_replaced_unasked(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.ckpt")
    target = tmp_path / "m.safetensors"
    target.write_text("mine")
    with pytest.raises(PatinaError, match=r"is there already; .*--force"):
        convert(tmp_path / "m.ckpt", target)
    assert target.read_text() == "mine"
    assert convert(tmp_path / "m.ckpt", target, force=True) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.ckpt", "m.safetensors"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_more_is_not_run(tmp_path, zipped):
    weights = {"a": torch.zeros(1), "state": Harm(tmp_path / "written")}
    torch.save(weights, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(PatinaError, match="asks for more than weights") as caught:
        convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.ckpt"]


def test_a_trainers_notes_are_dropped(tmp_path, monkeypatch):
    """Stable Diffusion 1.x's own checkpoints name a class of the trainer's in this place."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = kind
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    note = kind()
    note.best = 1.0
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": {kind: {"x": note}}}, tmp_path / "m.ckpt")
    monkeypatch.delitem(sys.modules, name)
    assert convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors") == 1
    assert torch.equal(load_file(tmp_path / "m.safetensors")["a"], torch.ones(2))


def test_what_is_no_checkpoint_has_its_sentence(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "whole.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:-300])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps([1, 2], protocol=2))
    torch.save({"epoch": 3}, tmp_path / "none.ckpt")
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    for name, said in (
        ("cut", "damaged"),
        ("empty", "damaged"),
        ("text", "damaged"),
        ("plain", "damaged"),
        ("none", "holds no weights"),
        ("list", "holds no weights"),
        ("missing", "no such file"),
    ):
        with pytest.raises(PatinaError, match=said):
            convert(tmp_path / f"{name}.ckpt", tmp_path / "new.safetensors")
        assert not (tmp_path / "new.safetensors").exists()
    with pytest.raises(PatinaError, match=r"must end in \.safetensors; write .*new\.safetensors"):
        convert(tmp_path / "whole.ckpt", tmp_path / "new.ckpt")
