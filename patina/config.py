"""The schema of a run: every key that a config file may hold, with its type, default and meaning."""

import os
import re
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from patina.configdata import Dataset, PictureSet
from patina.configengine import Engine
from patina.configimage import Noise, Preview
from patina.confignetwork import Network
from patina.configrules import RULES
from patina.configtext import TextMode, Validation
from patina.configtypes import (
    Count,
    CountOrNone,
    Edge,
    Folder,
    NotNegative,
    Place,
    Places,
    Positive,
    Precision,
    Rate,
    Section,
    Seed,
    Text,
    Texts,
)
from patina.data.buckets import MAX_ASPECT, Buckets, usual_step


class Config(Section):
    """One training run."""

    task_type: Literal["image", "text-generation", "text-classification"] = "image"
    """What is trained: `image`, a Stable Diffusion model on pictures; `text-generation`, a language model on
    conversations; `text-classification`, a language model such as DistilBERT on texts with a label each."""
    train_data_dir: Annotated[Folder | None, Field(examples=[Path("./data/style_train")])] = None
    """Image mode, required unless there are `dataset.subsets`: the folder with the training pictures."""
    train_data: Annotated[Place | Places | None, Field(examples=["./data/answers.jsonl"])] = None
    """Text mode, required: the file with the conversations or labelled texts, a data set of the hub (`owner/name`,
    `owner/name:split`, `owner/name/config:split`; needs the extra `patina[datasets]`), or a list of these."""
    validation_data: Annotated[Place | Places | None, Field(examples=["./data/other_answers.jsonl"])] = None
    """Text mode: conversations or labelled texts that are not trained on, to see what carries over."""
    metadata_path: Annotated[Folder | None, Field(examples=[Path("./data/style_train/metadata.csv")])] = None
    """A table of captions: a CSV, a `.jsonl`, or kohya's `.json`. Empty: `metadata.csv` or `metadata.jsonl` among the
    pictures. Pictures without a row take the `.txt` or `.caption` beside them."""
    base_model: Annotated[Place, Field(examples=["./models/stable-diffusion-v1-5.safetensors"])]
    """The model to adapt: a single `.safetensors` file as model sites have them, a folder in diffusers layout, or a
    name on the hub (`owner/name`). In text mode: a folder in transformers layout, or a name on the hub. Files and
    folders need no network. The base is read and never changed."""
    family: Literal["auto", "sd15", "sd2", "sdxl"] = "auto"
    """What kind of model the base is. `auto` looks and says what it found; name one to be stopped if it is another."""
    vae: Annotated[Place | None, Field(examples=["./models/vae-ft-mse-840000.safetensors"])] = None
    """Another autoencoder for the base: a single file or a diffusers folder. Empty: the base's own."""
    output_dir: Annotated[Folder, Field(examples=[Path("./output/my_style_lora")])]
    """The folder for all that the run writes: the LoRA, checkpoints, logs and previews."""
    output_name: Annotated[Text | None, Field(examples=["my_style_lora"])] = None
    """Name of the LoRA: its file name, and the word in `<lora:NAME:1>`. Empty: the output folder's name. It must not
    contain `: > = , / \\` or a dot, because WebUIs cut the name there."""
    trigger_word: Annotated[Text | None, Field(examples=["mystyle"])] = None
    """A word to call the style by, put in front of every caption that does not begin with it. Choose one that the base
    model does not know."""

    resolution: Edge = 512
    """Edge in pixels of a square training picture; other shapes get the same area. Take the base model's own: 512 for
    Stable Diffusion 1, 768 or 512 for 2, 1024 for XL."""

    quantize: Literal["none", "8bit", "4bit", "fp8"] = "none"
    """Keep the base's linear layers in 8 or 4 bits (QLoRA): a half or a quarter of their memory, at some loss of speed.
    `fp8` is 8 bits of floating point, in which GPUs from Ada and Hopper on multiply, too; elsewhere it saves memory.
    In image mode the UNet's, a third of its weights in Stable Diffusion 1 and 2 and seven eighths in XL."""

    preset: Annotated[Literal["simple", "domain", "complex", "minimal"] | None, Field(examples=["simple"])] = None
    """Text mode: a word for `lora_rank`, `lora_alpha`, `lora_target` and `network.dropout` together, each of which may
    still be written: `minimal` 2, 4, q_proj, 0; `simple` 4, 8, q and v, 0.05; `domain` 8, 16, q, k, v and o, 0.05;
    `complex` 16, 32, all seven, 0.1. The run says what it came to."""
    lora_rank: Count = 8
    """Rank of the update matrices. More rank learns finer detail, overfits sooner and makes a bigger file."""
    lora_alpha: Annotated[Positive | None, Field(examples=[16.0])] = None
    """Strength of the update: it is scaled by alpha / rank. Empty: equal to the rank. When you change it, change the
    learning rate the other way."""
    lora_target: Literal["full", "attn", "attn-mlp"] | Annotated[Texts, Field(min_length=1)] = "full"
    """Which layers are adapted: `full` (attention, feed-forward and projections, as sd-scripts does; in text mode all
    linear layers but the output), `attn` (attention), `attn-mlp` (attention and feed-forward), or a list of module
    names."""
    init_lora: Annotated[Place | None, Field(examples=["./loras/first.safetensors"])] = None
    """A LoRA file of the same family to start from, of any rank; in text mode an adapter folder. Empty: start with one
    that changes nothing."""
    train_text_encoder: Annotated[bool | None, Field(examples=[True])] = None
    """Adapt the text encoders too. It helps new words such as a trigger word; false needs less memory. Empty: true for
    Stable Diffusion 1 and 2, false for XL."""
    clip_skip: Annotated[int | None, Field(ge=1, le=12, examples=[2])] = None
    """Which layer of the text encoder is heard, counted from the end as in a WebUI's `Clip skip`. Empty: the last."""
    max_token_length: Literal[75, 150, 225] = 75
    """How many tokens of a caption are read, in chunks of 75 as in WebUIs; what is longer is cut off."""

    max_length: Annotated[Count | None, Field(examples=[1024])] = None
    """Text mode: tokens of a conversation or text at most; longer ones are cut there, and the run says how many.
    Empty: 2048, in classification 512, or as many as the model can see if that is less."""
    batch_size: Count = 1
    """Pictures, or rows of text, in one forward pass. Raise it as far as memory allows."""
    gradient_accumulation_steps: Count = 1
    """Batches summed into one optimizer step: a larger batch in the same memory, in proportionally more time."""
    epochs: Count = 10
    """Passes over all training data. Not used when `max_steps` is given."""
    max_steps: Annotated[Count | None, Field(examples=[2000])] = None
    """Optimizer steps of the whole run; wins over `epochs`. Empty: `epochs` decides."""
    learning_rate: Rate = 1e-4
    """Peak step size of the LoRA (in image mode the denoiser's). Lower it if previews burn or answers fall apart; raise
    it if nothing changes."""
    text_encoder_lr: Annotated[Rate | None, Field(examples=[5e-5])] = None
    """Peak step size of the text encoder's LoRA. Empty: half of `learning_rate`."""
    optimizer: Literal["adamw8bit", "adamw"] = "adamw8bit"
    """`adamw8bit` keeps its state in 8 bits, a quarter of the memory; `adamw` keeps it in 32."""
    weight_decay: NotNegative = 0.01
    """How strongly AdamW pulls the LoRA weights towards zero."""
    ema_decay: Annotated[float | None, Field(gt=0, lt=1, examples=[0.999])] = None
    """Measure, show and save a moving average of the LoRA over about the last 1 / (1 - decay) steps, instead of where
    the last one left it: smoother, and slower to follow. Empty: none."""
    max_grad_norm: NotNegative = 1.0
    """Gradients longer than this are shortened to it before a step; 0: no clipping."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes after the warm-up: down to 0 along a cosine or a line, or constant."""
    warmup_steps: CountOrNone = 0
    """Optimizer steps in which the learning rate rises from 0 to its peak. Use some if the first steps do harm."""

    mixed_precision: Precision = "fp16"
    """Numbers the model computes in. `bf16` overflows less and needs a GPU of 2020 or later; `fp32` is exact, slow and
    takes more memory. The LoRA itself is always trained in fp32."""
    save_precision: Precision = "fp16"
    """Numbers in the LoRA file. `fp16` is what WebUIs expect; `fp32` doubles the file."""
    metadata: Literal["full", "public", "none"] = "public"
    """What the LoRA file's header tells: `public` how it was trained and on which words, but no folder's path; `full`
    the paths too; `none` only what programs need to load it."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: about a third slower, with far less memory."""

    save_steps: CountOrNone = 500
    """Optimizer steps between two saves of a LoRA file and a checkpoint; 0: only at the end."""
    keep_checkpoints: Annotated[Count | None, Field(examples=[3])] = None
    """How many checkpoints stay; older ones are removed when a new one is whole. LoRA files stay. Empty: all."""
    resume: Annotated[Place | None, Field(examples=["auto"])] = None
    """`auto` goes on from the newest checkpoint in the output folder; a path goes on from that checkpoint. Empty: start
    anew."""
    seed: Seed = 42
    """Decides every random choice: the first weights, the noise and the order of the data."""

    network: Network = Network()
    dataset: Dataset = Dataset()
    noise: Noise = Noise()
    engine: Engine = Engine()
    preview: Preview = Preview()
    text: TextMode = TextMode()
    validation: Validation = Validation()

    @property
    def picture_sets(self) -> tuple[PictureSet, ...]:
        """The folders with the training pictures, of which every run in image mode has one."""
        data, folder, trigger = self.dataset, self.train_data_dir, self.trigger_word
        first = (PictureSet(folder, self.metadata_path, trigger, 1.0, data),) if folder else ()
        return first + tuple(
            PictureSet(own.dir, own.metadata_path, own.trigger_word or trigger, own.weight, data.of(own))
            for own in data.subsets
        )

    @property
    def triggers(self) -> tuple[str, ...]:
        """The trigger words, each once."""
        return tuple(dict.fromkeys(one.trigger for one in self.picture_sets if one.trigger))

    @property
    def name(self) -> str:
        """The LoRA's name: `output_name`, or else the output folder's own name."""
        return self.output_name or Path(os.path.abspath(self.output_dir)).name

    @property
    def alpha(self) -> float:
        """LoRA alpha; the update is scaled by alpha / rank."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def te_learning_rate(self) -> float:
        """Peak learning rate of the text encoder's LoRA."""
        return self.learning_rate / 2 if self.text_encoder_lr is None else self.text_encoder_lr

    @property
    def bucket_step(self) -> int:
        """Pixels between two neighbouring bucket edges."""
        return usual_step(self.resolution) if self.dataset.bucket_step is None else self.dataset.bucket_step

    @property
    def buckets(self) -> Buckets:
        """The shapes that pictures are cut to."""
        longest = MAX_ASPECT if self.dataset.buckets else 1.0
        return Buckets(self.resolution, self.bucket_step, longest, self.dataset.upscale)

    @property
    def cache_dir(self) -> Path:
        """Where encoded pictures and captions are kept."""
        return self.output_dir / "cache" if self.dataset.cache_dir is None else self.dataset.cache_dir

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        broken = [(rule.keys, sentence) for rule in RULES if (sentence := rule.broken(self))]
        if broken:
            text = " | ".join(f"{keys[0]}: {sentence}" for keys, sentence in broken)
            raise PydanticCustomError("rules", "{text}", {"text": text, "broken": broken})
        return self


@cache
def sections() -> dict[str, type[Section]]:
    """The sections by name."""
    found = ((name, field.annotation) for name, field in Config.model_fields.items())
    return {name: kind for name, kind in found if isinstance(kind, type) and issubclass(kind, Section)}


@cache
def fields() -> dict[str, FieldInfo]:
    """Every key by its full name: the top level's own, then `section.key`."""
    flat = {name: field for name, field in Config.model_fields.items() if name not in sections()}
    return flat | {
        f"{name}.{key}": field for name, kind in sections().items() for key, field in kind.model_fields.items()
    }


@cache
def lists() -> dict[str, type[Section]]:
    """The keys that hold a list of sections, and what one of them is."""
    held = ((key, get_args(kind)) for key, field in fields().items() for kind in kinds(field.annotation))
    found = {key: args[0] for key, args in held if args and isinstance(args[0], type)}
    return {key: kind for key, kind in found.items() if issubclass(kind, Section)}


class Inner(NamedTuple):
    """A key of one section of a list: `list[at].leaf`."""

    list: str
    at: int
    """Counted from 0."""
    leaf: str

    def __str__(self) -> str:
        return f"{self.list}[{self.at}].{self.leaf}"


def inner(word: str) -> Inner | None:
    """The word as a key of one section of a list, whether or not there is such a key; None: it is of no list."""
    found = re.fullmatch(r"([\w.]+)\[(\d{1,4})\]\.(.+)", word)
    return Inner(found[1], int(found[2]), found[3]) if found and found[1] in lists() else None


def field_of(key: str) -> FieldInfo:
    """What is declared of a key, also of one in a list."""
    within = inner(key)
    return lists()[within.list].model_fields[within.leaf] if within else fields()[key]


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The plain types that an annotation allows, without None: `Annotated[int, ...] | None` is `(int,)`."""
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in kinds(part))
    return () if annotation is type(None) else (annotation,)
