"""How many tokens a second a language model is trained on, beside transformers' own Trainer on the same rows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from torch import nn
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from patina import configfile
from patina.bench.outside import Watched, watch
from patina.bench.places import ROOT, write_json
from patina.bench.yardstick import matrix_rate
from patina.files import replacing_folder
from patina.task import Batch
from patina.text.dataset import encode_rows
from patina.text.pack import Stream
from patina.text.read import read
from patina.text.template import choose_template

Settings = Mapping[str, Any]
"""A resolved config, as its YAML has it."""
SIDES: Mapping[str, Sequence[str]] = {
    "Trainer": ("-m", "patina.bench.trainer"),
    "Patina": (str(ROOT / "train.py"), "--config"),
}
WARMUP, STEPS = 6, 24
"""Steps that are not timed, and steps that are."""
LIMIT = 400.0
"""Seconds after which a job is ended."""
ROWS, WORDS = 600, (30, 260)
"""Answers that are drawn, and how many words they have."""
QWEN: Mapping[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
"""Qwen2.5-7B."""
NARROW = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
"""What makes it a toy."""
RECIPE: Mapping[str, Any] = {
    "task_type": "text-generation",
    "lora_rank": 16,
    "lora_alpha": 32,
    "learning_rate": 1e-4,
    "optimizer": "adamw8bit",
    "mixed_precision": "bf16",
    "save_steps": 0,
    "text": {"packing": "true"},
    "preview": {"every": 0},
}


@dataclass(frozen=True)
class Case:
    """One job."""

    name: str
    batch: int
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = (
    Case("lora", 1),
    Case("lora-fp8", 1, {"quantize": "fp8"}),
    Case("lora-checkpointing", 4, {"gradient_checkpointing": True}),
    Case("qlora-checkpointing", 4, {"gradient_checkpointing": True, "quantize": "4bit"}),
)


@dataclass(frozen=True)
class Speed:
    """One case, done by one side."""

    case: str
    side: str
    tokens_per_second: float
    milliseconds: float
    """A step."""
    share: float
    """Of the chip's own rate in large products, counting those that a step cannot do without, and none twice."""
    gpu_bytes: int
    start_seconds: float
    """From the command to the end of the first step."""
    times: float | None = None
    """As many tokens a second as the Trainer."""
    error: str | None = None


def measure(cases: Sequence[Case], work: Path, device: torch.device, *, narrow: bool, length: int) -> Iterator[Speed]:
    """Rows, each as soon as it is known; base and texts are drawn into `work` where they are not."""
    base, texts = work / ("narrow" if narrow else "qwen2.5-7b"), work / "texts.jsonl"
    if not base.is_dir():
        with replacing_folder(base) as part:
            make_base(part, device, narrow)
    if not texts.is_file():
        draw_texts(texts)
    rate, needed = matrix_rate(device), _needed(base)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for case in cases:
        config = {**RECIPE, **case.settings, "batch_size": case.batch, "max_length": length}
        config |= {"base_model": str(base), "train_data": str(texts), "max_steps": WARMUP + STEPS}
        config["engine"] = {"device": device.type}
        plain = None
        for side in SIDES:
            row = _reading(case, side, *_do(case, side, config, work), needed, rate)
            row = replace(row, times=row.tokens_per_second / plain if plain else None)
            plain = plain or row.tokens_per_second
            yield row


def make_base(folder: Path, device: torch.device, narrow: bool) -> None:
    """A model of random weights in bf16, with the demo's tokenizer."""
    config = Qwen2Config(**{**QWEN, **(NARROW if narrow else {}), "bos_token_id": None, "eos_token_id": None})
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).bfloat16()
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(std=0.02, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "data" / "demo" / "lm").save_pretrained(folder)


def draw_texts(path: Path) -> None:
    """Questions and answers of words, of very different lengths."""
    random = Random("bench texts")
    words = ["".join(random.choices("abcdefghijklmnoprstuw", k=random.randint(2, 8))) for _ in range(500)]

    def some(count: int) -> str:
        return " ".join(random.choices(words, k=count))

    rows = [{"question": some(random.randint(5, 30)), "answer": some(random.randint(*WORDS))} for _ in range(ROWS)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")


def batches(config: Settings, count: int) -> list[Batch]:
    """The first batches of the run that a resolved config describes."""
    template = choose_template(AutoTokenizer.from_pretrained(config["base_model"]), config["text"]["template"])
    longest = config["max_length"]
    rows = encode_rows(read(Path(config["train_data"]), {}).rows, template, longest).encoded
    return list(islice(Stream(rows, config["batch_size"], config["seed"], longest, template.end).batches(0), count))


def _needed(base: Path) -> int:
    """Floating-point operations of one trained token: two each way for every weight that it is multiplied by.

    What attention does within a row is a hundredth of that and left out, as are the adapters' own products.
    """
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config.from_pretrained(base))
    return 4 * sum(layer.weight.numel() for layer in model.modules() if type(layer) is nn.Linear)


def _do(case: Case, side: str, config: Mapping[str, Any], work: Path) -> tuple[Settings, Watched]:
    """Both sides start with the same resolved config, but for where they write."""
    output = work / "runs" / f"{case.name}-{side}-{os.getpid()}"
    output.parent.mkdir(parents=True, exist_ok=True)
    written, resolved = (output.with_suffix(end) for end in (".yaml", ".resolved.yaml"))
    written.write_text(yaml.safe_dump({**config, "output_dir": str(output)}, sort_keys=False), encoding="utf-8")
    whole = configfile.dump(configfile.load(written))
    resolved.write_text(whole, encoding="utf-8")
    command = [sys.executable, *SIDES[side], str(resolved)]
    return yaml.safe_load(whole), watch(
        command, output / "metrics.jsonl", output.with_suffix(".log"), LIMIT, os.environ, ROOT
    )


def _reading(case: Case, side: str, config: Settings, done: Watched, needed: int, rate: float) -> Speed:
    if done.code != 0 or len(done.lines) != WARMUP + STEPS:
        why = f"ended at its limit of {LIMIT:g} s" if done.code is None else f"failed: {done.says}"
        return Speed(case.name, side, 0.0, 0.0, 0.0, 0, 0.0, error=why)
    when = [seconds for seconds, _ in done.lines]
    seconds = when[-1] - when[WARMUP - 1]
    tokens = sum(batch["tokens"] for batch in batches(config, WARMUP + STEPS)[WARMUP:])
    memory = max(facts.get("memory", 0) for _, facts in done.lines)
    rest = (1000 * seconds / STEPS, tokens / seconds * needed / rate, memory, when[0])
    return Speed(case.name, side, tokens / seconds, *rest)


def save(rows: Sequence[Speed], path: Path) -> None:
    """The figures as JSON."""
    write_json(path, [asdict(row) for row in rows])
