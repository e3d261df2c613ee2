"""The bench measures the same work on both sides, counts what it should, and outlives a job that fails."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from toolbox import load_tool
from transformers import Qwen2ForCausalLM

from patina import configfile
from patina.bases.find import find_base
from patina.bases.load import load_pipeline
from patina.bench import bases, plain, texts, trainer
from patina.bench.cases import CASES, chosen, tiny
from patina.bench.measure import Facts, measure
from patina.bench.outside import watch
from patina.bench.places import Place as BenchPlace
from patina.bench.prepare import draw_pictures, prepare
from patina.bench.report import Row, cells, line, markdown
from patina.bench.yardstick import counted, matrix_rate, training_flops
from patina.clip import PLAIN
from patina.errors import PatinaError
from patina.families import FAMILIES
from patina.family import narrow
from patina.lora import foreign, inject
from patina.lora.names import Place
from patina.tasks.text import TextTask

CPU = torch.device("cpu")
FACTS = Facts("here", {}, [], {"cpu": 1e9}, {})
SMALL = tiny(CASES[0])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Family -> a folder with a narrow base of it."""

    @cache
    def draw(name: str) -> Path:
        folder = tmp_path_factory.mktemp("bases") / name
        bases.make_base(FAMILIES[name], folder, CPU, narrow=True)
        return folder

    return draw


# --- the whole tool


def test_captioning_is_measured_beside_the_librarys_own_loop(tmp_path, capsys):
    out = tmp_path / "captions.json"
    command = ["--tiny", "--backend", "wd", "--pictures", "10", "--device", "cpu", "--work", str(tmp_path / "w")]
    assert load_tool("bench_captions").main([*command, "--output", str(out)]) == 0
    (row,) = json.loads(out.read_text())
    assert row["parameters"] > 10e6
    assert row["reading"] > row["patina"] > 0
    assert f"| {row['patina'] / row['plain']:.2f} |" in capsys.readouterr().out
    assert not list((tmp_path / "w").glob("*.csv")), "captions of a benchmark are nobody's"


def test_the_trainer_is_given_the_rows_that_patina_trains_on(tmp_path):
    base, data, output = tmp_path / "base", tmp_path / "texts.jsonl", tmp_path / "out"
    texts.make_base(base, CPU, narrow=True)
    texts.draw_texts(data)
    config = {**texts.RECIPE, "base_model": str(base), "train_data": str(data), "output_dir": str(output)}
    config |= {"max_steps": 2, "batch_size": 2, "max_length": 256, "optimizer": "adamw", "engine": {"device": "cpu"}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    path.write_text(configfile.dump(configfile.load(path)))
    loaded = yaml.safe_load(path.read_text())
    first, second = texts.batches(loaded, 2)
    rows = [row for batch in (first, second) for row in trainer.apart(batch, 256)]
    assert [len(row["input_ids"]) for row in rows] == [256] * 4
    model = Qwen2ForCausalLM.from_pretrained(base)
    for number, batch in enumerate((first, second)):
        pair = rows[2 * number : 2 * number + 2]
        given = {name: torch.stack([row[name] for row in pair]) for name in pair[0]}
        theirs = model(**given, num_items_in_batch=len(batch["targets"])).loss * len(batch["targets"])
        assert theirs.item() == pytest.approx(TextTask(model)(batch).item(), rel=1e-2)  # bf16
    # in a process of its own: the Trainer sets accelerate's state for all that come after it
    subprocess.run([sys.executable, "-m", "patina.bench.trainer", str(path)], check=True, capture_output=True)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (output / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_case_is_measured_from_the_command_line(tmp_path, capsys):
    """The tool, both processes and the preparing one, as `make bench` runs them."""
    out = tmp_path / "bench.json"
    bench = load_tool("bench")
    assert bench.main(["--tiny", "--case", "sd15-text-4", "--work", str(tmp_path / "w"), "--output", str(out)]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    rows = {row["side"]: row for row in found["rows"]}
    assert list(rows) == ["plain", "Patina"]
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(2 * 1000 / row["milliseconds"])
        expected = row["images_per_second"] * found["flops"]["sd15-text-4"] / found["rate"]["cpu"]
        assert row["share"] == pytest.approx(expected)
        assert 0 < row["start_seconds"] < row["whole_seconds"]
        assert row["host_bytes"] > 2**27
        assert row["gpu_bytes"] is None
        assert f"| {row['milliseconds']:.1f} |" in said
    assert rows["plain"]["times"] is None
    assert rows["Patina"]["times"] == pytest.approx(rows["plain"]["milliseconds"] / rows["Patina"]["milliseconds"])
    ours, theirs = (trained(tmp_path / "w" / "runs" / "sd15-text-4" / side) for side in ("Patina", "plain"))
    assert ours == theirs
    assert len(ours) == 264
    assert {place.component for place in ours} == {"unet", "text_encoder"}


def trained(folder: Path) -> dict[Place, dict[str, torch.Size]]:
    """Layer -> the shapes of what is trained in it, from the file that either program wrote."""
    (path,) = folder.glob("*.safetensors")
    lora = foreign.read_any(path)
    assert not lora.unknown
    return {place: {name: part.shape for name, part in change.parts.items()} for place, change in lora.changes.items()}


def test_a_bad_name_or_key_is_a_sentence(tmp_path):
    bench = load_tool("bench")
    with pytest.raises(PatinaError, match=r"^--case: there is no case 'sd15-unet'; write sd15-unet-4"):
        bench.main(["--case", "sd15-unet"])
    with pytest.raises(PatinaError, match="lora_rank"):
        next(measure(SMALL, FACTS, tmp_path, ["plain"], ["lora_rnk=4"]))


def test_the_list_names_every_case(capsys):
    assert load_tool("bench").main(["--list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [case.name for case in CASES] == [case.name for case in chosen([])]


# --- the work


def test_what_is_drawn_is_kept_and_a_gpus_cases_are_left_out(tmp_path):
    wanted = [SMALL, replace(SMALL, name="large", family="sdxl", device="cuda")]
    found = prepare(tmp_path, wanted, "cpu")
    assert found["cases"] == list(found["flops"]) == [SMALL.name]
    assert not BenchPlace(tmp_path, wanted[1]).base.exists()
    place = BenchPlace(tmp_path, SMALL)
    assert len(list(place.pictures.glob("*.png"))) == SMALL.pictures
    made = (place.base / "model_index.json").stat().st_mtime_ns
    prepare(tmp_path, wanted[:1], "cpu")
    assert (place.base / "model_index.json").stat().st_mtime_ns == made


@pytest.mark.parametrize(("name", "case"), [("sd2", "sd2-text-1"), ("sdxl", "sdxl-checkpointing-4")])
def test_the_plain_loop_trains_each_family(name, case, drawn, tmp_path):
    """On a base that Patina reads as that family, the layers that Patina trains; the file is one that is read."""
    small, family = replace(tiny(*chosen([case])), steps=1), FAMILIES[name]
    place = BenchPlace(tmp_path, small)
    place.base.parent.mkdir()
    place.base.symlink_to(drawn(name))
    draw_pictures(place.pictures, small)
    base = find_base(str(place.base))
    assert base.family is family
    written = tmp_path / "run.yaml"
    written.write_text(yaml.safe_dump(place.config("plain")))
    config = configfile.load(written)
    plain.run(yaml.safe_load(configfile.dump(config)))
    lines = [json.loads(line) for line in (place.output("plain") / "metrics.jsonl").read_text().splitlines()]
    assert [facts["step"] for facts in lines] == list(range(1, small.warmup + small.steps + 1))
    assert all(math.isfinite(facts["loss"]) for facts in lines)
    pipe = load_pipeline(base, torch.float32, CPU)
    parts = [component for component in family.targets if small.text or component == family.denoiser]
    paths = {
        (component, path)
        for component in parts
        for path in inject.adapt(getattr(pipe, component), narrow(family, "full")[component], 8, 8.0, seed=0)
    }
    assert {(place.component, place.path) for place in trained(place.output("plain"))} == paths


def test_drawn_weights_overflow_nowhere(drawn):
    """In fp16 a full-size base would give NaN, and its steps would be left out, were they too large."""
    pipe = load_pipeline(find_base(str(drawn("sdxl"))), torch.float32, CPU)
    with torch.no_grad():
        said = FAMILIES["sdxl"].encode(pipe, ["a cat"], PLAIN)
        x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        cond = {name: part.expand(2, *part.shape[1:]) for name, part in said.items()}
        out = FAMILIES["sdxl"].predict(pipe, x, torch.tensor([10, 700]), cond)
        latents = pipe.vae.encode(torch.rand(1, 3, 64, 64)).latent_dist.mean
    for numbers in (*cond.values(), out, latents):
        assert 0.01 < numbers.std() < 100


# --- the yardsticks


def test_operations_are_counted_by_the_formula():
    layer = torch.nn.Linear(5, 7, bias=False).requires_grad_(False)
    x = torch.randn(3, 5, requires_grad=True)
    assert counted(lambda: layer(x)) == 2 * 3 * 5 * 7
    assert counted(lambda: layer(x).sum().backward()) == 2 * (2 * 3 * 5 * 7)  # the weight's gradient is not formed


def test_a_picture_of_sd15_needs_what_is_known_of_it():
    """0.803 TFLOP forward; backward by the inputs as much, and once more the attention's two products."""
    unet = training_flops(FAMILIES["sd15"], 512, text=False, narrow=False)
    assert unet == pytest.approx(2.15 * 0.803e12, rel=0.005)
    both = training_flops(FAMILIES["sd15"], 512, text=True, narrow=False)
    encoder = 2 * 2 * 77 * 85e6 + 12 * 3 * 4 * 77**2 * 768  # its weights both ways, and its attention
    channels, places = 5 * (320 + 640 + 1280) + 1280, 5 * (4096 * 320 + 1024 * 640 + 256 * 1280) + 64 * 1280
    back = 2 * 2 * 77 * (768 * channels + places)  # what the UNet's keys and values pass back to the caption
    assert both - unet == pytest.approx(encoder + back, rel=0.01)


def test_a_matrix_products_rate_is_a_rate():
    assert 1e8 < matrix_rate(CPU) < 1e14


# --- a job from outside


def job(script: str, folder: Path, limit: float = 60.0):
    """A watched Python program that may write to `metrics`."""
    command = [sys.executable, "-c", f"import time\nmetrics = {str(folder / 'metrics')!r}\n{script}"]
    return watch(command, folder / "metrics", folder / "log", limit, os.environ, folder)


STEPS = """
with open(metrics, "w") as file:
    for step in range(3):
        time.sleep(0.1)
        print('{"st', end="", file=file, flush=True)
        time.sleep(0.1)
        print('ep": %d}' % step, file=file, flush=True)
held = bytearray(300_000_000)
"""


def test_steps_are_timed_as_they_end(tmp_path):
    done = job(STEPS, tmp_path)
    assert done.code == 0
    assert [facts["step"] for _, facts in done.lines] == [0, 1, 2]
    (first, second, third) = (seconds for seconds, _ in done.lines)
    assert 0.15 < second - first == pytest.approx(third - second, abs=0.15)  # 0.2, on a busy machine
    assert done.seconds >= third
    assert 300_000_000 < done.memory < 2_000_000_000


def runs(process: str) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_job_that_fails_or_hangs_is_a_row_and_not_the_end(tmp_path):
    failed = job("raise SystemExit('no such thing\\n')", tmp_path)
    assert (failed.code, failed.says) == (1, "no such thing")
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    hung = job(f"import subprocess, sys\nprint({child}.pid, flush=True)\ntime.sleep(60)", tmp_path, limit=2.0)
    assert hung.code is None
    assert 2 < hung.seconds < 20
    deadline = time.monotonic() + 5  # the signal has been sent; a busy machine may take a moment to end it
    while runs(hung.says) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(hung.says)  # what it had started was ended too
    row, *more = measure(replace(SMALL, limit=0.1, rounds=2), FACTS, tmp_path, ["plain"], [])
    assert not more
    assert row.error == "ended at its limit of 0.1 s"
    assert row.milliseconds is None
    assert "ended at its limit" in line(cells(row, whole=False))


def test_the_table_has_a_column_for_each_figure():
    row = Row("a", "A", "Patina", None, 50.0, 80.0, 6 * 2**30, 3 * 2**30, 0.155, 12.0, 45.0, 2.5)
    head, rule, steps, job = markdown([row, replace(row, case="job")], ["job"])
    assert head.count("|") == rule.count("|") == steps.count("|") == job.count("|")
    assert steps == "| A | Patina | 80.0 | 50.0 | 6.0 | 3.0 | 15.5% | 12.0 |  | 2.50 |"
    assert job == "| A | Patina | 80.0 | 50.0 | 6.0 | 3.0 | 15.5% | 12.0 | 45.0 | 2.50 |"
