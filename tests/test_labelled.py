"""Labelled texts as they come: tables and JSON, words and numbers; what is wrong named by its place; their batches."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from openpyxl import Workbook

from patina.engine.flat import flatten
from patina.engine.precision import Precision
from patina.engine.step import EagerStep
from patina.errors import PatinaError
from patina.lora import inject
from patina.tasks.label import LabelTask
from patina.text.classifier import load_classifier, longest
from patina.text.labelled import read_labelled, survey_labelled
from patina.text.labelset import LabelStream, encode
from patina.text.load import load_tokenizer
from patina.text.rows import Row
from patina.text.targets import choose_targets
from patina.text.verdicts import accuracy, confusion, macro_f1
from patina.watch.confusion import draw_confusion
from patina.watch.sheet import PAPER
from tests.tiny_classifier import BASES, WORDS, roberta, rows, save

CSV = 'text,label\n"good, really",positive\nawful,negative\n'
LABELS = tuple(sorted(WORDS))


def workbook(path: Path, lines: list[list]) -> Path:
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "评论"
    for line in lines:
        sheet.append(line)
    book.save(path)
    return path


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def pairs(path: Path, **columns: str) -> list[tuple[str, str]]:
    return [(row.text, row.label) for row in read_labelled(path, columns).rows]


EXPECTED = [("good, really", "positive"), ("awful", "negative")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", CSV),
        ("a.tsv", CSV.replace(",p", "\tp").replace(",n", "\tn").replace("text,", "text\t")),
        ("a.csv", CSV.replace("text,label", "评论,情感")),
        ("a.csv", CSV.replace("text,label", "Review,Sentiment").replace("\nawful", "\n,\nawful")),
        (
            "a.jsonl",
            "".join(json.dumps({"id": 1, "sentence": text, "label": label}) + "\n" for text, label in EXPECTED),
        ),
        ("a.json", json.dumps([{"content": text, "category": label} for text, label in EXPECTED])),
    ],
)
def test_tables_and_json_under_the_headings_that_people_use(tmp_path, name, text) -> None:
    assert pairs(put(tmp_path / name, text)) == EXPECTED


def test_workbooks_and_folders(tmp_path) -> None:
    workbook(tmp_path / "1.xlsx", [["文本", "标签"], ["好看", 1], ["难看", 0]])
    put(tmp_path / "2.csv", "text,label\nfine,0\n")
    assert pairs(tmp_path) == [("好看", "1"), ("难看", "0"), ("fine", "0")]


def test_labels_may_be_numbers_or_truths(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in (1, 0, 2.0, True, "1", 0.5)))
    assert [label for _, label in pairs(path)] == ["1", "0", "2", "true", "1", "0.5"]


def test_columns_may_be_named(tmp_path) -> None:
    path = put(tmp_path / "a.csv", "n,what,kind,label\n1,fine,good,x\n")
    assert pairs(path, text="what", label="kind") == [("fine", "good")]
    with pytest.raises(PatinaError, match=r"text\.columns: must name the text and the label"):
        read_labelled(path, {"text": "what"})
    with pytest.raises(PatinaError, match="which column nothing and kind is the text and which the label"):
        read_labelled(path, {"text": "nothing", "label": "kind"})


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.csv", "text,label\nfine,good\n,good\n", "a.csv:3 column A: the text is empty; write it, or delete the row"),
        ("a.csv", "text,label\nfine,\n", "a.csv:2 column B: the label is empty; write it, or delete the row"),
        (
            "a.jsonl",
            '{"text": "a", "label": ["x"]}\n',
            "a.jsonl:1, key label: the label is a list; write one word, ",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "b"}\n',
            "a.jsonl:2: the label is empty; write it, or delete",
        ),
        (
            "a.csv",
            "number,what\n1,x\n",
            "a.csv: which column is the text and which the label? The headings are num",
        ),
        ("a.txt", "fine\n", "a.txt: has no columns; save texts and labels as one of .xlsx, "),
        ("a.csv", "text,label\n", "a.csv: there are no rows in it; write texts with a label each"),
    ],
)
def test_a_fault_is_named_by_its_place(tmp_path, name, text, fault) -> None:
    (found,) = survey_labelled(put(tmp_path / name, text), {}).faults
    assert found.startswith(fault)
    with pytest.raises(PatinaError, match="cannot be trained on: 1 fault"):
        read_labelled(tmp_path / name, {})


def test_a_fault_in_a_workbook_is_named_by_sheet_and_cell(tmp_path) -> None:
    path = workbook(tmp_path / "评.xlsx", [["文本", "标签"], ["好", "正"], ["坏", None]])
    assert survey_labelled(path, {}).faults == ["评.xlsx 评论!B3: the label is empty; write it, or delete the row"]


def texts() -> list[Row]:
    return [Row((), str(at), row["text"] * (at % 4 + 1), row["label"]) for at, row in enumerate(rows(10))]


def task(folder: Path, dtype: torch.dtype = torch.float32) -> LabelTask:
    """One whose LoRA has values already, as if it had trained."""
    cpu = torch.device("cpu")
    found = load_classifier(str(folder), LABELS, load_tokenizer(str(folder)), dtype, cpu, seed=1)
    inject.adapt(found.model, choose_targets(found.model, "full", found.whole), 4, 8.0, seed=0)
    inject.train_whole(found.model, found.whole)
    for adapter in inject.adapters(found.model).values():
        torch.nn.init.normal_(adapter.B, std=0.05, generator=torch.Generator().manual_seed(1))
    return LabelTask(found.model)


def epoch(made: LabelTask, folder: Path, size: int) -> list:
    words = load_tokenizer(str(folder))
    rows_of = encode(texts(), LABELS, words, 60)
    stream = LabelStream.of(rows_of, size, 0, made.model.config.get_text_config().pad_token_id)
    return list(islice(stream.batches(0), stream.per_epoch()))


@pytest.fixture(scope="module", params=BASES)
def base(request, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp(request.param), request.param)


def test_a_text_beside_longer_ones_is_what_it_is_alone(base) -> None:
    made = task(base)
    with torch.no_grad():
        (together,) = epoch(made, base, 10)
        at_once = dict(zip(together["places"], made.logits(together), strict=True))
        alone = {batch["places"][0]: made.logits(batch)[0] for batch in epoch(made, base, 1)}
    assert together["attention_mask"].min() == 0
    for place, logits in alone.items():
        torch.testing.assert_close(at_once[place], logits, rtol=1e-4, atol=1e-5)


def test_the_head_is_trained_in_fp32_on_a_base_in_half_precision(base) -> None:
    made, cpu = task(base, torch.bfloat16), torch.device("cpu")
    flats = flatten(made.adapted())
    step = EagerStep(
        made,
        flats,
        torch.optim.SGD([flats["model"]], lr=0.1),
        Precision(cpu, torch.bfloat16),
        Accelerator(cpu=True),
        0.0,
    )
    (batch,) = epoch(made, base, 10)
    step.add(batch, 10)
    whole = gradient(task(base), base, 10)
    grad = flats["model"].grad
    assert grad is not None
    assert grad.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(grad, whole, dim=0) > 0.98


@pytest.mark.parametrize("size", [1, 3])
def test_batches_and_accumulation_do_not_change_the_gradient(base, size) -> None:
    whole, found = (gradient(task(base), base, number) for number in (10, size))
    assert (found - whole).norm() < 1e-5 * whole.norm()


def gradient(made: LabelTask, folder: Path, size: int) -> torch.Tensor:
    """The flat gradient of a step over all rows, in batches of a size; one of them computed a row at a time."""
    flats = flatten(made.adapted())
    optimizer = torch.optim.SGD([flats["model"]], lr=0.0)
    step = EagerStep(made, flats, optimizer, Precision(torch.device("cpu"), torch.float32), Accelerator(cpu=True), 0.0)
    batches = epoch(made, folder, size)
    for at, batch in enumerate(batches):
        step.most = 1 if at == 0 and size < 10 else None
        step.add(batch, sum(map(made.count, batches)))
    assert made.tally()[1:] == (10, sum(batch["tokens"] for batch in batches))
    grad = flats["model"].grad
    assert grad is not None
    return grad.clone()


def test_the_end_of_a_text_that_is_cut_stays(tmp_path) -> None:
    words = load_tokenizer(str(save(tmp_path, "bert")))
    found = encode(texts(), LABELS, words, 20)
    uncut = encode(texts(), LABELS, words, 60)
    assert found.cut == sum(len(row.ids) > 20 for row in uncut.encoded) > 0
    assert {int(row.ids[-1]) for row in found.encoded} == {int(row.ids[-1]) for row in uncut.encoded}
    assert max(len(row.ids) for row in found.encoded) == 20
    assert found.report()[-1] == f"{found.cut} rows are longer than max_length: 20 tokens and are cut there"


def test_roberta_leaves_its_first_positions_unused(tmp_path) -> None:
    folder = save(tmp_path, "bert", roberta())
    words = load_tokenizer(str(folder))
    words.pad_token = words.convert_ids_to_tokens(1)
    found = load_classifier(str(folder), LABELS, words, torch.float32, torch.device("cpu"))
    assert (longest(found.model), found.whole) == (64, ("classifier",))
    chosen = choose_targets(found.model, ["dense"], found.whole)
    assert chosen
    assert not any(path.startswith("classifier") for path in chosen)
    found.model(input_ids=torch.full((1, 64), 9))
    with pytest.raises((IndexError, RuntimeError)):
        found.model(input_ids=torch.full((1, 65), 9))


def test_scores_by_hand() -> None:
    matrix = confusion(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 1]), 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert accuracy(matrix) == pytest.approx(3 / 6)
    # 2*2/(3+3), 2*1/(2+3), 0/(1+0), and the fourth label is nowhere
    assert macro_f1(matrix) == pytest.approx((4 / 6 + 2 / 5 + 0) / 3)


@pytest.mark.parametrize("labels", [("bad", "good"), ("差评", "好评"), ("x" * 60, "y")])
def test_the_picture_is_darker_where_more_rows_are(labels) -> None:
    image = draw_confusion([[9, 1], [4, 6]], labels, "accuracy 75.0%")
    colours = image.getcolors(1 << 20)
    assert colours is not None
    common = [colour for _, colour in sorted(colours, reverse=True)[:5]]
    shades = sorted(sum(colour) for colour in common if isinstance(colour, tuple))
    assert len(shades) == 5  # paper, and a shade for each share
    assert image.getpixel((0, 0)) == tuple(bytes.fromhex(PAPER[1:]))
    assert draw_confusion([[1, 9], [4, 6]], labels, "accuracy 75.0%").tobytes() != image.tobytes()
    assert image.width < 700


def test_without_a_font_for_them_labels_are_numbers(monkeypatch) -> None:
    monkeypatch.setattr("patina.watch.confusion.FONTS", ("no-such-font.ttf",))
    first, second = (draw_confusion([[9, 1], [4, 6]], labels, "t") for labels in (("差评", "好评"), ("好", "坏")))
    assert first.tobytes() == second.tobytes()
