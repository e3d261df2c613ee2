"""CoCa writes the captions that a naive loop finds, whole pictures are seen, and random weights never run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_captioner import CONTEXT, END, MODEL, picture, save_tiny_captioner

from patina.caption.captioner import choose_device
from patina.caption.coca import CocaCaptioner, resolve
from patina.errors import PatinaError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_captioner(tmp_path_factory.mktemp("model") / "captioner")


@pytest.fixture(scope="module")
def captioner(model) -> CocaCaptioner:
    captioner = CocaCaptioner(str(model))
    captioner.load(CPU, torch.float32)
    return captioner


def naive_caption(model: open_clip.CoCa, image: torch.Tensor, length: int = CONTEXT) -> str:
    """One picture, one token at a time, through the model's inner parts; nothing stops early."""
    ids = [49406]
    with torch.no_grad():
        _, seen = model._encode_image(image[None])
        while len(ids) < length:
            _, read = model._encode_text(torch.tensor([ids]))
            scores = model.text_decoder(seen, read)[0, -1].tolist()
            banned = {0, 49406, END} if len(ids) < 5 else {0, 49406}
            ids.append(max((id for id in range(len(scores)) if id not in banned), key=scores.__getitem__))
    words = ids[1:]
    return open_clip.decode(torch.tensor(words[: words.index(END)] if END in words else words)).strip()


def test_captions_are_those_of_a_naive_loop_alone_and_in_a_batch(model, captioner):
    reference = open_clip.create_model(f"local-dir:{model}", require_pretrained=True).eval()
    images = [captioner.prepare(picture(number)) for number in range(12)]
    batch = captioner.generate(images)
    assert [caption.text for caption in batch] == [naive_caption(reference, image) for image in images]
    assert batch == [captioner.generate([image])[0] for image in images]
    assert batch[::-1] == captioner.generate(images[::-1])
    # The comparison means something: texts differ, some rows end before others, and some never do.
    assert len({caption.text for caption in batch}) >= 5
    assert {caption.truncated for caption in batch} == {True, False}


def test_length_is_bounded_by_the_request_and_by_the_model(model):
    tokenizer = open_clip.SimpleTokenizer()
    for asked, most in ((5, 5), (1000, CONTEXT - 1)):
        captioner = CocaCaptioner(str(model), max_tokens=asked)
        captioner.load(CPU, torch.float32)
        captions = captioner.generate([captioner.prepare(picture(number)) for number in range(12)])
        lengths = [len(tokenizer.encode(caption.text)) for caption in captions if caption.truncated]
        assert lengths
        assert max(lengths) <= most + 1  # a cut word can take one more token when read again


def test_bfloat16_writes_captions_too(model):
    captioner = CocaCaptioner(str(model))
    captioner.load(CPU, torch.bfloat16)
    assert all(caption.text for caption in captioner.generate([captioner.prepare(picture(0))] * 2))


def test_the_fingerprint_names_weights_and_settings(model, captioner, tmp_path):
    def fingerprint(folder: Path, max_tokens: int = 60) -> str:
        other = CocaCaptioner(str(folder), max_tokens)
        other.load(CPU, torch.float32)
        return other.fingerprint()

    shutil.copytree(model, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == captioner.fingerprint()
    assert fingerprint(model, 59) != captioner.fingerprint()
    weights = load_file(model / "open_clip_model.safetensors")
    weights["visual.proj"] = weights["visual.proj"] + 1e-3
    save_file(weights, tmp_path / "moved" / "open_clip_model.safetensors")
    assert fingerprint(tmp_path / "moved") != captioner.fingerprint()


def test_the_edges_of_wide_art_are_seen(captioner, tmp_path):
    wide = Image.new("RGB", (320, 32), "black")
    wide.paste("red", (0, 0, 32, 32))
    squeezed = captioner.prepare(wide)
    assert squeezed.shape == (3, 32, 32)
    assert squeezed[0, 16, 0] - squeezed[0, 16, -1] > 3  # in standard deviations
    padded = CocaCaptioner(str(save_tiny_captioner(tmp_path / "padding", {"resize_mode": "longest"})))
    padded.load(CPU, torch.float32)
    assert torch.equal(padded.prepare(wide)[:, 0, 0], padded.prepare(Image.new("RGB", (9, 9)))[:, 0, 0])


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("coca_ViT-B-32:laion2b_s13b_b90k", ("coca_ViT-B-32", "laion2b_s13b_b90k")),
        ("laion/some-coca", ("hf-hub:laion/some-coca", None)),
        ("hf-hub:laion/some-coca", ("hf-hub:laion/some-coca", None)),
    ],
)
def test_models_of_the_network_are_told_from_files(name, source):
    assert resolve(name) == source


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{tmp}/no_weights", "weights are missing; expected open_clip_config.json and open_clip_model.safetensors"),
        ("local-dir:{tmp}/no_weights", "weights are missing"),
        ("{tmp}/no_config", "config is missing"),
        ("{tmp}/no_config/open_clip_model.safetensors", "for example coca_ViT-L-14={tmp}/no_config/"),
        ("{tmp}/absent", "no such folder"),
        ("./absent", "no such folder"),
        ("coca_ViT-B-32={tmp}/absent.safetensors", "no such file"),
        ("ViT-B-32={tmp}/no_config/open_clip_model.safetensors", "neither a folder nor a CoCa"),
        ("coca_ViT-B-32:openai", "known are: coca_ViT-B-32:laion2b_s13b_b90k, "),
        ("coca_ViT-B-32", "no such weights"),
        ("coca", "neither a folder nor a CoCa of open_clip .*ARCH=FILE"),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_the_remedy(tmp_path, model, name, words):
    for part, folder in (("open_clip_config.json", "no_weights"), ("open_clip_model.safetensors", "no_config")):
        (tmp_path / folder).mkdir()
        shutil.copy(model / part, tmp_path / folder)
    with pytest.raises(PatinaError, match=words.format(tmp=tmp_path)):
        CocaCaptioner(name.format(tmp=tmp_path))


def test_a_folder_named_from_where_we_stand_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PatinaError, match="no such folder"):
        resolve("models/absent")


def test_weights_may_be_a_file_of_a_known_architecture(model, captioner, tmp_path):
    (tmp_path / "coca_tiny_for_tests.json").write_text(json.dumps({**MODEL, "custom_text": True}), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "coca_tiny_for_tests.json")
    other = CocaCaptioner(f"coca_tiny_for_tests={model / 'open_clip_model.safetensors'}")
    other.load(CPU, torch.float32)
    image = captioner.prepare(picture(0))
    assert other.generate([image]) == captioner.generate([image])


def damage_file(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").write_bytes(b"not weights")


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "open_clip_model.safetensors")
    del weights["visual.proj"]
    save_file(weights, folder / "open_clip_model.safetensors")


def other_width(folder: Path) -> None:
    change_config(folder, lambda config: config["model_cfg"]["text_cfg"].update(context_length=CONTEXT + 4, width=32))


def break_json(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text("{", encoding="utf-8")


def no_decoder(folder: Path) -> None:
    change_config(folder, lambda config: config["model_cfg"].pop("multimodal_cfg"))
    weights = load_file(folder / "open_clip_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("text_decoder.")}
    save_file(kept, folder / "open_clip_model.safetensors")


def other_words(folder: Path) -> None:
    change_config(folder, lambda config: [config["model_cfg"][part].update(vocab_size=99) for part in PARTS])
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["text.token_embedding.weight"] = weights["text.token_embedding.weight"][:99].clone()
    projection = weights["text_decoder.text_projection"]
    weights["text_decoder.text_projection"] = projection[:, :99].clone()
    save_file(weights, folder / "open_clip_model.safetensors")


PARTS = ("text_cfg", "multimodal_cfg")


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_file, "cannot be loaded"),
        (lose_a_weight, r"cannot be loaded .*visual\.proj"),
        (other_width, "cannot be loaded"),
        (break_json, "cannot be loaded"),
        (no_decoder, "cannot write captions"),
        (other_words, "CLIP's own tokenizer"),
    ],
)
def test_damaged_or_unsuitable_weights_never_run(model, tmp_path, damage, words):
    shutil.copytree(model, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(PatinaError, match=words):
        CocaCaptioner(str(tmp_path / "copy")).load(CPU, torch.float32)


def test_weights_that_vanish_before_they_are_read_are_not_replaced_by_random_ones(model, tmp_path):
    captioner = CocaCaptioner(str(shutil.copytree(model, tmp_path / "copy")))
    (tmp_path / "copy" / "open_clip_model.safetensors").unlink()
    with pytest.raises(PatinaError, match="cannot be loaded"):
        captioner.load(CPU, torch.float32)


def test_padding_and_start_never_become_text(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    weights = load_file(model / "open_clip_model.safetensors")
    weights["text_decoder.text_projection"][:, [0, 49406]] *= 10
    save_file(weights, tmp_path / "copy" / "open_clip_model.safetensors")
    captioner = CocaCaptioner(str(tmp_path / "copy"))
    captioner.load(CPU, torch.float32)
    for caption in captioner.generate([captioner.prepare(picture(number)) for number in range(4)]):
        assert "!" not in caption.text
        assert "start_of_text" not in caption.text


def test_cuda_is_refused_where_there_is_none():
    assert choose_device("cpu") == (CPU, torch.float32)
    if not torch.cuda.is_available():
        assert choose_device("auto") == (CPU, torch.float32)
        with pytest.raises(PatinaError, match="--device cpu"):
            choose_device("cuda")
