"""Each backend reads a model in its library's own layout, writes what that library would, and refuses half a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import tiny_backends
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_captioner import CONTEXT, picture, save_tiny_captioner
from transformers import AutoModelForImageTextToText, AutoProcessor

from patina.caption.backends import BACKENDS, Chosen, Wish, choose
from patina.caption.captioner import Caption
from patina.caption.label import label_folder, plan_labels
from patina.caption.polish import Polish, finish
from patina.caption.style import lexicon
from patina.data.captions import read_table
from patina.errors import PatinaError

CPU = torch.device("cpu")
LENGTH = 12
SAVERS = {
    "coca": save_tiny_captioner,
    "blip": tiny_backends.save_blip,
    "blip2": tiny_backends.save_blip2,
    "florence2": tiny_backends.save_florence2,
    "vlm": tiny_backends.save_qwen2vl,
    "wd": tiny_backends.save_wd,
}
HUB = ("blip", "blip2", "florence2", "vlm")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, save in SAVERS.items():
        save(folder / name)
    tiny_backends.save_llava(folder / "llava")
    return folder


def loaded(*backends: str, **wish) -> Chosen:
    chosen = choose(backends, Wish(**({"max_tokens": LENGTH} | wish)), lambda: "")
    chosen.captioner.load(CPU, torch.float32)
    return chosen


def write(chosen: Chosen, pictures: list[Image.Image]) -> list[Caption]:
    return chosen.captioner.generate([chosen.captioner.prepare(image) for image in pictures])


PICTURES = [picture(number) for number in range(12)]


@pytest.mark.parametrize("name", [*SAVERS, "vlm=llava"])
def test_a_picture_gets_the_same_caption_alone_and_in_a_batch(models, name):
    backend, _, folder = name.partition("=")
    chosen = loaded(f"{backend}={models / (folder or backend)}")
    captions = write(chosen, PICTURES)
    assert captions == [write(chosen, [image])[0] for image in PICTURES]
    assert captions[::-1] == write(chosen, PICTURES[::-1])
    # The comparison means something: captions differ, and some are cut where others come to their end.
    assert len({caption.text for caption in captions}) >= 4
    if not BACKENDS[backend].tags:
        assert {caption.truncated for caption in captions} == {True, False}


@pytest.mark.parametrize("name", SAVERS)
def test_a_folder_read_in_threads_gets_the_captions_of_its_pictures(models, tmp_path, name):
    """Sizes differ, so that batches of alike pictures are not in the folder's order."""
    pictures = [image.resize((32 * (1 + at % 3), 32)) for at, image in enumerate(PICTURES)]
    for at, image in enumerate(pictures):
        image.save(tmp_path / f"{at}.png")
    chosen = loaded(f"{name}={models / name}")
    plan = plan_labels(tmp_path, tmp_path / "out.csv")
    options = {"read": chosen.read, "alike": chosen.alike, "batch_size": 3, "workers": 4}
    label_folder(plan, chosen.captioner, polish=Polish(prune="off"), **options)
    expected = [finish(caption.text, Polish(prune="off"), {}).prompt for caption in write(chosen, pictures)]
    assert list(read_table(tmp_path / "out.csv").values()) == expected


def reference(folder: Path, image: Image.Image, prompt: str, chat: bool, skip: Callable[[int], int]) -> str:
    """One picture as the library's own pages tell how."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    if chat:
        question = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        turn = [{"role": "user", "content": question}]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(turn, add_generation_prompt=True, **options)
    else:
        inputs = processor(images=image, text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, num_beams=1)
    return processor.decode(ids[0, skip(inputs["input_ids"].shape[1]) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("name", "prompt", "chat", "skip"),
    [
        ("blip", "a cat on", False, lambda _: 1),
        ("blip2", "", False, lambda asked: asked),
        ("florence2", "<CAPTION>", False, lambda _: 1),
        ("vlm", "a red cat on the house", True, lambda asked: asked),
    ],
)
def test_captions_are_those_of_the_library(models, name, prompt, chat, skip):
    chosen = loaded(f"{name}={models / name}", prompt=prompt)
    expected = [reference(models / name, image, prompt, chat, skip) for image in PICTURES[:3]]
    captions = [caption.text for caption in write(chosen, PICTURES[:3])]
    if name == "florence2":  # a text that reaches the limit: see the backend's remark about its end
        assert [text.split()[: LENGTH - 2] for text in captions] == [text.split()[: LENGTH - 2] for text in expected]
    else:
        assert captions == expected


@pytest.mark.parametrize("name", HUB)
def test_a_prompt_changes_the_caption_and_the_fingerprint(models, name):
    other = "<MORE_DETAILED_CAPTION>" if name == "florence2" else "small green tree"
    first, second = (loaded(f"{name}={models / name}", prompt=prompt) for prompt in (None, other))
    assert first.captioner.fingerprint() != second.captioner.fingerprint()
    if name != "florence2":  # whose questions hold no word that the tiny model knows
        assert [caption.text for caption in write(first, PICTURES)] != [
            caption.text for caption in write(second, PICTURES)
        ]


def test_blip_goes_on_from_the_prompt(models):
    chosen = loaded(f"blip={models / 'blip'}", prompt="a cat on")
    assert all(caption.text.startswith("a cat on") for caption in write(chosen, PICTURES))


def test_hints_of_different_lengths_leave_the_other_rows_as_they_are(models):
    """Rows padded on the right, as some processors do by default, would give other captions."""
    captioner = loaded(f"vlm={models / 'vlm'}", prompt="a cat").captioner
    pictures = [captioner.prepare(image) for image in PICTURES]
    hints = [" ".join(["red house"] * number) for number in range(len(pictures))]
    alone = [captioner.generate([one], [hint])[0] for one, hint in zip(pictures, hints, strict=True)]
    assert captioner.generate(pictures, hints) == alone
    assert alone != captioner.generate(pictures)


def test_tags_feed_the_question_of_the_model_after_them(models):
    tagger, prompt = f"wd={models / 'wd'}", "the cat {tags} by"
    chain = loaded(tagger, f"vlm={models / 'vlm'}", prompt=prompt, general=0.0)
    tags = write(loaded(tagger, general=0.0), PICTURES)
    expected = [
        write(loaded(f"vlm={models / 'vlm'}", prompt=prompt.replace("{tags}", tag.text)), [image])[0]
        for tag, image in zip(tags, PICTURES, strict=True)
    ]
    assert write(chain, PICTURES) == expected
    assert chain.batch == BACKENDS["vlm"].batch
    assert (
        chain.captioner.fingerprint() != loaded(tagger, f"vlm={models / 'vlm'}", prompt=prompt).captioner.fingerprint()
    )


def test_the_tagger_sees_blue_first_on_a_white_square_and_has_a_threshold_a_category(models):
    model = timm.create_model(f"local-dir:{models / 'wd'}", pretrained=True).eval()
    wide = Image.new("RGB", (64, 32), (200, 90, 10))
    square = Image.new("RGB", (64, 64), "white")
    square.paste(wide, (0, 16))
    pixels = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)[:, :, ::-1]
    inputs = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    found = model(inputs).sigmoid()[0].tolist()
    tags = [(name.replace("_", " ") if name not in ("^_^", "o_o") else name, category) for name, category in TAGS]

    def expected(general: float, character: float) -> str:
        lists = [
            sorted((-value, at) for at, value in enumerate(found) if tags[at][1] == category and value >= least)
            for category, least in ((4, character), (0, general))
        ]
        return ", ".join(tags[at][0] for chosen in lists for _, at in chosen)

    middle = sorted(found)[len(found) // 2]
    for general, character in ((0.0, 0.0), (middle, 0.0), (0.0, middle), (1.0, 1.0)):
        chosen = loaded(f"wd={models / 'wd'}", general=general, character=character)
        assert write(chosen, [wide])[0].text == expected(general, character)
    assert expected(0.0, 0.0).count(", ") == len(TAGS) - 3, "ratings are left out"
    assert {"o_o", "saber (fate)"} <= set(expected(0.0, 0.0).split(", "))


TAGS = tiny_backends.TAGS


@pytest.mark.parametrize("name", HUB)
def test_weights_that_are_not_there_never_become_random_ones(models, tmp_path, name):
    folder = shutil.copytree(models / name, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    lost = next(key for key in weights if key.endswith("weight") and weights[key].ndim > 1 and "embed" not in key)
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PatinaError, match=r"1 weights are missing .*fetch the model again"):
        loaded(f"{name}={folder}")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PatinaError, match="cannot be loaded"):
        loaded(f"{name}={folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PatinaError, match=r"\*\.safetensors is missing; the folder must hold config\.json, model\.saf"):
        loaded(f"{name}={folder}")


def test_a_tagger_without_its_weights_or_with_other_tags_is_refused(models, tmp_path):
    folder = shutil.copytree(models / "wd", tmp_path / "copy")
    rows = (folder / "selected_tags.csv").read_text(encoding="utf-8").splitlines()
    (folder / "selected_tags.csv").write_text("\n".join(rows[:-1]), encoding="utf-8")
    with pytest.raises(PatinaError, match=r"8 tags in selected_tags\.csv, but the model has 9"):
        loaded(f"wd={folder}")
    (folder / "selected_tags.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(PatinaError, match="line 1: the columns must be tag_id,name,category,count"):
        loaded(f"wd={folder}")
    weights = load_file(folder / "model.safetensors")
    del weights["head.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(PatinaError, match="cannot be loaded"):
        loaded(f"wd={folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PatinaError, match=r"must hold config\.json, model\.safetensors, selected_tags\.csv"):
        loaded(f"wd={folder}")


@pytest.mark.parametrize("name", [*HUB, "wd"])
def test_a_model_that_is_not_here_names_the_line_that_fetches_it(name):
    with pytest.raises(
        PatinaError, match=rf"hf download \S+ --local-dir models/(\S+); then --backend {name}=models/\1"
    ):
        loaded(name)
    with pytest.raises(PatinaError, match=r"no such folder; give a folder with config\.json"):
        loaded(f"{name}=./models/absent")


@pytest.mark.parametrize("model", ["", "=laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k"])
def test_a_coca_that_is_not_here_names_the_line_that_fetches_it(model):
    line = r"hf download laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k --local-dir models/coca; then --backend"
    with pytest.raises(PatinaError, match=rf"{line} coca=models/coca, a folder with open_clip_config\.json"):
        loaded(f"coca{model}")


def test_code_that_comes_with_a_model_is_not_run(models, tmp_path):
    folder = shutil.copytree(models / "vlm", tmp_path / "copy")
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: ...\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "of_its_own", "auto_map": {"AutoModelForImageTextToText": "theirs.Model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(PatinaError, match="cannot be loaded"):
        loaded(f"vlm={folder}")
    assert not (tmp_path / "ran").exists()


def test_questions_that_a_model_cannot_take_are_refused(models, tmp_path):
    with pytest.raises(PatinaError, match="no captioning task of Florence-2; write <CAPTION> or"):
        loaded(f"florence2={models / 'florence2'}", prompt="what is this?")
    folder = shutil.copytree(models / "vlm", tmp_path / "copy")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['role'] }}", encoding="utf-8")
    with pytest.raises(PatinaError, match="no place for a picture"):
        loaded(f"vlm={folder}")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(PatinaError, match="no chat template"):
        loaded(f"vlm={folder}")


@pytest.mark.parametrize(
    ("backends", "wish", "words"),
    [
        (["tea"], {}, "no such backend; known are: auto, coca, blip,"),
        (["blip", "vlm"], {}, r"only taggers \(wd\) can come first, and only what can be asked \(vlm, openai\) last"),
        (["wd", "coca"], {}, "for example --backend wd --backend vlm"),
        (["coca"], {"quantize": "4bit"}, "--quantize 4bit: not with coca, only with blip, blip2, florence2, vlm"),
        (["openai"], {"key_env": "NO_SUCH_KEY"}, "write: export NO_SUCH_KEY="),
        (["openai"], {"url": "127.0.0.1:80"}, "not an address; write for example http://127.0.0.1:8000/v1"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_anything_is_loaded(backends, wish, words):
    with pytest.raises(PatinaError, match=words):
        choose(backends, Wish(**wish), lambda: "")


def test_auto_is_the_model_named_or_else_the_embedded_one(models):
    assert choose(["auto"], Wish(), lambda: str(models / "coca")).captioner.name == f"CoCa {models / 'coca'}"
    named = choose(["auto"], Wish(model=str(models / "coca")), lambda: "elsewhere")
    assert named.captioner.name == f"CoCa {models / 'coca'}"


def test_coca_ranks_styles_as_open_clip_compares_texts_with_pictures(models):
    phrases = lexicon().rankable()
    chosen = loaded(f"coca={models / 'coca'}", styles=phrases)
    captions = write(chosen, PICTURES)
    model = open_clip.create_model(f"local-dir:{models / 'coca'}", require_pretrained=True).eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{models / 'coca'}")(list(phrases), context_length=CONTEXT)
    pixels = torch.stack([chosen.captioner.prepare(image) for image in PICTURES])
    with torch.no_grad():
        scores = model.encode_image(pixels) @ model.encode_text(tokens).T
    expected = [tuple(phrases[at] for at in row[:3]) for row in scores.argsort(descending=True).tolist()]
    assert [caption.styles for caption in captions] == expected
    assert len(set(expected)) > 1
    plain = write(loaded(f"coca={models / 'coca'}"), PICTURES)
    assert [caption.text for caption in plain] == [caption.text for caption in captions]
    assert {caption.styles for caption in plain} == {()}


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantized_model_writes_captions_too(tmp_path, bits):
    folder = tiny_backends.save_llava(tmp_path / "wide", width=64)  # bitsandbytes packs blocks of 64 on a CPU
    chosen = loaded(f"vlm={folder}", quantize=bits)
    assert len({caption.text for caption in write(chosen, PICTURES)}) > 3
    kinds = {type(module).__name__ for module in chosen.captioner._loaded.model.modules()}
    assert {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits] in kinds
    assert chosen.captioner.fingerprint() != loaded(f"vlm={folder}").captioner.fingerprint()
