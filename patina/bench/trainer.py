"""transformers' Trainer over peft's LoRA, as their pages show it: what text mode is measured against.

`python -m patina.bench.trainer CONFIG.yaml` trains as train.py does with the same resolved config, on the very rows
that it makes, laid end to end with positions that begin anew and no mask. Nothing is cast to fp32 beyond what the
libraries do by themselves; where the base is in 4 bits, `prepare_model_for_kbit_training`, which would, is left out.
"""

# what transformers and peft take and give is annotated more narrowly than it is: not ours to mend
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from patina.bench.texts import WARMUP, Settings, batches

IGNORED = -100
"""What the Trainer learns nothing of."""


class Log(TrainerCallback):
    """A line a step, as train.py's `metrics.jsonl` has."""

    def __init__(self, stream: TextIO, steps: int) -> None:
        self.stream, self.timed = stream, (WARMUP, steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **said: Any) -> None:
        if state.global_step in self.timed and torch.cuda.is_available():
            torch.cuda.synchronize()
        used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        self.stream.write(json.dumps({"step": state.global_step, "memory": used}) + "\n")
        self.stream.flush()


def run(config: Settings) -> None:
    """Load, adapt, train and save."""
    output = Path(config["output_dir"])
    output.mkdir(parents=True)
    steps = config["max_steps"]
    rows = [row for batch in batches(config, steps) for row in apart(batch, config["max_length"])]
    model = get_peft_model(_model(config), _lora(config))
    with (output / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        how: dict[str, Any] = {"data_collator": default_data_collator, "callbacks": [Log(stream, steps)]}
        Trainer(model, _arguments(config), train_dataset=rows, **how).train()
    model.save_pretrained(output)


def _arguments(config: Settings) -> TrainingArguments:
    on_cpu = config["engine"]["device"] == "cpu"
    return TrainingArguments(
        config["output_dir"],
        per_device_train_batch_size=config["batch_size"],
        max_steps=config["max_steps"],
        learning_rate=config["learning_rate"],
        lr_scheduler_type=config["scheduler"],
        optim="adamw_bnb_8bit",
        weight_decay=config["weight_decay"],
        max_grad_norm=config["max_grad_norm"],
        bf16=True,
        use_cpu=on_cpu,
        gradient_checkpointing=config["gradient_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
        train_sampling_strategy="sequential",
    )


def apart(batch: Mapping[str, Any], longest: int) -> Iterator[dict[str, Tensor]]:
    """The rows of a batch, each filled up to `longest` tokens; see `patina.text.pack`."""
    ids, positions = batch["input_ids"], batch["position_ids"]
    labels = torch.full((ids.numel(),), IGNORED)
    labels[batch["predicts"] + 1] = batch["targets"]
    room = longest - ids.shape[1]
    for row, places, learned in zip(ids, positions, labels.view(ids.shape), strict=True):
        yield {
            "input_ids": F.pad(row, (0, room)),
            "position_ids": torch.cat([places, torch.arange(room)]),
            "labels": F.pad(learned, (0, room), value=IGNORED),
        }


def _model(config: Settings) -> Any:
    device = "cpu" if config["engine"]["device"] == "cpu" else "cuda"
    how: dict[str, Any] = {"dtype": torch.bfloat16, "device_map": {"": device}}
    if config["quantize"] == "4bit":
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        how["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, **four)
    model = AutoModelForCausalLM.from_pretrained(config["base_model"], **how)
    model.config.use_cache = False
    if config["gradient_checkpointing"]:
        model.enable_input_require_grads()
    return model


def _lora(config: Settings) -> LoraConfig:
    what = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.0}
    return LoraConfig(r=config["lora_rank"], lora_alpha=config["lora_alpha"], **what)


if __name__ == "__main__":
    run(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
