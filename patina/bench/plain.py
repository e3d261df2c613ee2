"""The plain peft + diffusers loop, written as the libraries' own examples are: what Patina is measured against.

`python -m patina.bench.plain CONFIG.yaml` does what train.py does with the same resolved config. The step is that of
diffusers' examples/text_to_image/train_text_to_image_lora.py and train_text_to_image_lora_sdxl.py: peft's adapter in
fp32 on a frozen fp16 base, accelerate's autocast, loss scale and clipping, the loss read and logged at each step.
Better than the examples it encodes the pictures, and captions for frozen text encoders, once before the first step.
It calls the libraries' public names alone, and of Patina's only the table of the layers that are trained. Min-SNR and
noise offset, next to nothing in time, are left out.
"""

# diffusers and accelerate annotate what they take and give more narrowly than they are: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from patina.families import FAMILIES
from patina.family import narrow

Config = Mapping[str, Any]
Row = dict[str, Tensor]
"""What a step needs of one picture; in a batch, with one dimension more in front."""


def run(config: Config) -> None:
    """Load, encode, train and save; `metrics.jsonl` in the output folder gets a line a step, as train.py's does."""
    on_gpu = config["engine"]["device"] == "cuda"
    accelerator = Accelerator(mixed_precision="fp16" if on_gpu else "no", cpu=not on_gpu)
    kept = {"vae": torch.float32, "default": torch.float16 if on_gpu else torch.float32}
    pipe = DiffusionPipeline.from_pretrained(config["base_model"], dtype=kept, local_files_only=True)
    pipe.to(accelerator.device)
    model = MODELS[type(pipe).__name__]
    adapted = adapt(pipe, config)
    rows = encode(pipe, model, config)
    output = Path(config["output_dir"])
    output.mkdir(parents=True)
    with (output / "metrics.jsonl").open("w", encoding="utf-8") as log:
        train(pipe, model, adapted, rows, config, accelerator, log)
    layers = {f"{name}_lora_layers": _state(part) for name, part in adapted.items()}
    pipe.save_lora_weights(output, **layers)


def adapt(pipe: Any, config: Config) -> dict[str, nn.Module]:
    """Freeze the base and put peft's LoRA on the layers that the config names; component -> module."""
    family = FAMILIES[config["family"]]
    targets = narrow(family, config["lora_target"])
    adapted = {}
    for name in ("vae", family.denoiser, *family.text_encoders):
        part = getattr(pipe, name).requires_grad_(False)
        if name in targets and (config["train_text_encoder"] or name == family.denoiser):
            part.add_adapter(_lora(config, targets[name]))
            cast_training_params(part)
            adapted[name] = part.train()
    if config["gradient_checkpointing"]:
        pipe.unet.enable_gradient_checkpointing()
    return adapted


def _lora(config: Config, layers: tuple[str, ...]) -> LoraConfig:
    rank = config["lora_rank"]
    alpha = config["lora_alpha"] or rank
    return LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(layers))


@torch.no_grad()
def encode(pipe: Any, model: Model, config: Config) -> list[Row]:
    """The pictures as mean and spread of their latents, with their captions' tokens or what frozen encoders say."""
    folder, rows = Path(config["train_data_dir"]), []
    with Path(config["metadata_path"]).open(encoding="utf-8", newline="") as stream:
        captions = list(csv.reader(stream))[1:]
    for name, caption in captions:
        with Image.open(folder / name) as image:
            row = _latents(pipe, image.convert("RGB"), config["resolution"])
        tokens = _tokens(pipe, caption)
        if not config["train_text_encoder"]:
            tokens = model.read(pipe, {key: ids[None].to(pipe.vae.device) for key, ids in tokens.items()})
            tokens = {key: part[0] for key, part in tokens.items()}
        rows.append({key: part.cpu() for key, part in (row | tokens).items()})
    idle = ["vae"] if config["train_text_encoder"] else ["vae", *_readers(pipe)]
    for name in idle:
        getattr(pipe, name).to("cpu")
    torch.cuda.empty_cache()
    return rows


def _latents(pipe: Any, image: Image.Image, edge: int) -> Row:
    """A square picture's latents, as mean and std [4,h,w] in the base's dtype; and what SDXL is told of its cut."""
    vae, dtype = pipe.vae, next(pipe.unet.parameters()).dtype
    square = ImageOps.fit(image, (edge, edge), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(1, edge, edge, 3)
    spread = vae.encode((pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(vae.device)).latent_dist
    scale = vae.config.scaling_factor
    sizes = torch.tensor([image.height, image.width, 0, 0, edge, edge], dtype=torch.float32)
    return {"mean": (spread.mean[0] * scale).to(dtype), "std": (spread.std[0] * scale).to(dtype), "time_ids": sizes}


def _tokens(pipe: Any, caption: str) -> Row:
    """Each tokenizer's 77 numbers, by its text encoder's name."""
    tokenizers = {name: getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in _readers(pipe)}
    how = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    return {name: tokenizer(caption, **how).input_ids[0] for name, tokenizer in tokenizers.items()}


def _readers(pipe: Any) -> list[str]:
    return [name for name in ("text_encoder", "text_encoder_2") if name in pipe.components]


def train(
    pipe: Any,
    model: Model,
    adapted: Mapping[str, nn.Module],
    rows: list[Row],
    config: Config,
    accelerator: Accelerator,
    log: TextIO,
) -> None:
    """The examples' loop: a batch, a loss, a step; a line is written after each."""
    groups = [_group(name, part, config) for name, part in adapted.items()]
    optimizer = OPTIMIZERS[config["optimizer"]](groups, config["weight_decay"])
    loader = DataLoader(rows, batch_size=config["batch_size"], shuffle=True)
    steps = config["max_steps"] or config["epochs"] * len(loader)
    rates = get_scheduler(
        config["scheduler"], optimizer, num_warmup_steps=config["warmup_steps"], num_training_steps=steps
    )
    noising = DDPMScheduler.from_config(pipe.scheduler.config)
    optimizer, loader, rates, *parts = accelerator.prepare(optimizer, loader, rates, *adapted.values())
    for name, part in zip(adapted, parts, strict=True):
        setattr(pipe, name, part)
    weights = [weight for group in groups for weight in group["params"]]
    endless = chain.from_iterable(loader for _ in range(steps))
    for step, batch in zip(range(1, steps + 1), endless, strict=False):
        with accelerator.accumulate(*parts):
            loss = _loss(pipe, model, noising, batch, config)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(weights, config["max_grad_norm"])
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        facts = {"step": step, "loss": loss.detach().item(), "memory": torch.cuda.max_memory_allocated()}
        log.write(json.dumps(facts) + "\n")
        log.flush()


def _loss(pipe: Any, model: Model, noising: Any, batch: Row, config: Config) -> Tensor:
    latents = batch["mean"] + batch["std"] * torch.randn_like(batch["std"])
    noise = torch.randn_like(latents)
    t = torch.randint(0, noising.config.num_train_timesteps, (len(latents),), device=latents.device)
    x = noising.add_noise(latents, noise, t)
    cond = batch | model.read(pipe, batch) if config["train_text_encoder"] else batch
    predicted = model.predict(pipe, x, t, cond)
    velocity = noising.config.prediction_type == "v_prediction"
    target = noising.get_velocity(latents, noise, t) if velocity else noise
    return F.mse_loss(predicted.float(), target.float())


def _group(name: str, part: nn.Module, config: Config) -> dict[str, Any]:
    rate = config["learning_rate"] if name == "unet" else config["text_encoder_lr"] or config["learning_rate"] / 2
    return {"params": [weight for weight in part.parameters() if weight.requires_grad], "lr": rate}


def _state(part: nn.Module) -> dict[str, Tensor]:
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(part))


def _adamw8bit(groups: list[dict[str, Any]], weight_decay: float) -> Any:
    from bitsandbytes.optim import AdamW8bit  # deferred: it takes seconds to import

    return AdamW8bit(groups, weight_decay=weight_decay)


OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "adamw8bit": _adamw8bit,
    "adamw": lambda groups, weight_decay: torch.optim.AdamW(groups, weight_decay=weight_decay),
}


def _read(pipe: Any, tokens: Row) -> Row:
    return {"text": pipe.text_encoder(tokens["text_encoder"])[0]}


def _predict(pipe: Any, x: Tensor, t: Tensor, cond: Row) -> Tensor:
    return pipe.unet(x, t, cond["text"], return_dict=False)[0]


def _read_xl(pipe: Any, tokens: Row) -> Row:
    first = pipe.text_encoder(tokens["text_encoder"], output_hidden_states=True)
    second = pipe.text_encoder_2(tokens["text_encoder_2"], output_hidden_states=True)
    return {"text": torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), "pooled": second[0]}


def _predict_xl(pipe: Any, x: Tensor, t: Tensor, cond: Row) -> Tensor:
    added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
    return pipe.unet(x, t, cond["text"], added_cond_kwargs=added, return_dict=False)[0]


@dataclass(frozen=True)
class Model:
    """How captions are read and noise is predicted with one pipeline class."""

    read: Callable[[Any, Row], Row]
    predict: Callable[[Any, Tensor, Tensor, Row], Tensor]


MODELS: Mapping[str, Model] = {
    "StableDiffusionPipeline": Model(_read, _predict),
    "StableDiffusionXLPipeline": Model(_read_xl, _predict_xl),
}

if __name__ == "__main__":
    run(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
