"""The keys under `dataset`: how pictures and their captions become batches."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from patina.configtypes import Count, CountOrNone, Folder, Positive, Section, Text

Share = Annotated[float, Field(ge=0, lt=1)]


class Subset(Section):
    """One more folder of pictures to train on. What is left empty is as the run has it."""

    dir: Annotated[Folder, Field(examples=[Path("./data/portraits")])]
    """The folder, as `train_data_dir`."""
    metadata_path: Annotated[Folder | None, Field(examples=[Path("./data/portraits/metadata.csv")])] = None
    """Its table of captions, as `metadata_path`. Empty: the one among the pictures."""
    trigger_word: Annotated[Text | None, Field(examples=["inkpt"])] = None
    """The word for its style. Empty: the run's `trigger_word`."""
    weight: Positive = 1.0
    """What the error of its pictures is multiplied by."""
    repeats: Annotated[Count | None, Field(examples=[2])] = None
    """How many times an epoch shows each of its pictures."""
    flip: Annotated[bool | None, Field(examples=[True])] = None
    """As `dataset.flip`."""
    crop: Annotated[Literal["centre", "random"] | None, Field(examples=["centre"])] = None
    """As `dataset.crop`."""
    colour: Annotated[Share | None, Field(examples=[0.1])] = None
    """As `dataset.colour`."""
    caption_lines: Annotated[Literal["first", "random", "joined"] | None, Field(examples=["first"])] = None
    """As `dataset.caption_lines`."""
    wildcards: Annotated[bool | None, Field(examples=[True])] = None
    """As `dataset.wildcards`."""
    shuffle_tags: Annotated[bool | None, Field(examples=[True])] = None
    """As `dataset.shuffle_tags`."""
    keep_tags: Annotated[CountOrNone | None, Field(examples=[1])] = None
    """As `dataset.keep_tags`."""
    tag_dropout: Annotated[Share | None, Field(examples=[0.1])] = None
    """As `dataset.tag_dropout`."""
    caption_dropout: Annotated[Share | None, Field(examples=[0.05])] = None
    """As `dataset.caption_dropout`."""
    caption_dropout_every_epochs: Annotated[CountOrNone | None, Field(examples=[0])] = None
    """As `dataset.caption_dropout_every_epochs`."""


class Dataset(Section):
    """How the pictures are cut, grouped and kept."""

    subsets: Annotated[tuple[Subset, ...], Field(strict=False, examples=[("./data/portraits", "./data/places")])] = ()
    """More folders of pictures to train on, each with rules of its own or, where it is only a path, with the run's;
    beside `train_data_dir`, or in place of it."""

    buckets: bool = True
    """Group the pictures by shape and train each shape as it is; false: cut every picture to a square."""
    bucket_step: Annotated[int | None, Field(ge=8, multiple_of=8, examples=[64])] = None
    """Pixels between two neighbouring bucket edges. Empty: an eighth of the resolution, rounded down to a multiple
    of 8, between 8 and 64. Smaller steps cut less off each picture and make more, emptier buckets."""
    upscale: bool = False
    """Enlarge pictures that are smaller than their bucket; false: give those a smaller bucket, as large as fits within
    them. What is enlarged is blurred, and the blur is learned."""
    repeats: Count = 1
    """How many times an epoch shows each picture. More of them makes epochs longer, which suits very small folders."""
    cache_dir: Annotated[Folder | None, Field(examples=[Path("./cache/my_style")])] = None
    """Where encoded pictures and captions are kept. Empty: `cache` in the output folder. Name one folder in several
    runs over the same pictures to encode them once."""
    workers: Annotated[int | None, Field(ge=1, examples=[4])] = None
    """Threads that read pictures and cut them. Empty: chosen from the machine's CPU count."""
    allow_links: bool = False
    """Follow links in the pictures' folder that lead out of it; false: refuse them, as a downloaded folder may hold
    links to private files."""
    flip: bool = False
    """Show each picture mirrored every other time. Not for faces of one person, writing, or anything that has a left
    and a right."""
    crop: Literal["centre", "random"] = "centre"
    """Which part of a picture is shown where its bucket leaves room: the middle, or one of `variants` cuts."""
    colour: Share = 0.0
    """How far brightness, contrast, saturation and hue may move, each time as in one of `variants`; 0.1 is plenty, 0 is
    off. Not where the colours are the style."""
    variants: Count = 4
    """In how many ways each picture is encoded where `crop` or `colour` asks for others, the first as it is; with
    `flip`, twice as many. All are encoded once and kept in memory."""
    masks: Literal["off", "files", "alpha"] = "off"
    """What shows which parts of a picture count: `files`, a grey picture of its size beside it, `NAME-masklabel.png`,
    white where it counts; `alpha`, the picture's own transparency."""
    unmasked_weight: Share = 0.1
    """How much the parts count that a mask leaves out; 0: not at all, and they may come out as anything."""
    reg_dir: Annotated[Folder | None, Field(examples=[Path("./data/reg")])] = None
    """Regularisation pictures: others of the same class, which the base shall keep drawing as it does. An epoch shows
    as many as pictures to train on. Their captions never get the trigger word. Empty: none."""
    reg_weight: Positive = 1.0
    """What the error of regularisation pictures is multiplied by (prior preservation); less of it holds the base
    less."""
    caption_lines: Literal["first", "random", "joined"] = "first"
    """Which of a picture's captions is trained on where it has several, one a line: the first, another each time, or
    all of them, joined by commas."""
    wildcards: bool = False
    """Read `{red|green|blue}` in a caption as one of these, another each time; `{{` and `}}` stand for braces."""
    shuffle_tags: bool = False
    """Give the tags of a caption, what stands between commas, another order each time, so that none counts for its
    place; for captions that are lists, not sentences. The trigger word stays in front."""
    keep_tags: CountOrNone = 0
    """Tags at a caption's beginning, after the trigger word, that `shuffle_tags` and `tag_dropout` leave alone. In a
    caption with `|||` they are those before it, and those after a second `|||` are left alone too."""
    tag_dropout: Share = 0.0
    """How likely each tag is left out each time, so that none is leant on; 0.1 is usual, 0 is off."""
    caption_dropout: Share = 0.0
    """How likely a picture is shown without its caption, which teaches the style to pictures drawn without guidance,
    too; 0.05 to 0.1 is usual, 0 is off."""
    caption_dropout_every_epochs: CountOrNone = 0
    """Show all pictures of every so-many-th epoch without captions; 0: never."""
    caption_weights: bool = False
    """Read `(word:1.2)`, `(word)` and `[word]` in captions and previews as weights, as WebUIs do; false: as text."""

    def of(self, subset: Subset) -> "Dataset":
        """These values with the subset's own in place of them."""
        own = subset.model_dump(exclude_none=True, include=set(Dataset.model_fields))
        return self.model_copy(update=own)


class PictureSet(NamedTuple):
    """A folder of pictures that share their rules."""

    folder: Path
    table: Path | None
    """Of captions; None: the one among the pictures."""
    trigger: str | None
    weight: float
    rules: Dataset


DATASET_ALIASES = (
    ("num_repeats", "dataset.repeats", "sd-scripts"),
    ("flip_aug", "dataset.flip", "sd-scripts"),
    ("random_crop", "dataset.crop", "sd-scripts: `random_crop: true`"),
    ("color_aug", "dataset.colour", "sd-scripts: `color_aug: true` is 0.1"),
    ("alpha_mask", "dataset.masks", "sd-scripts: `alpha_mask: true`"),
    ("masked_training", "dataset.masks", "OneTrainer: `masked_training: true`"),
    ("unmasked_weight", "dataset.unmasked_weight", "OneTrainer"),
    ("reg_data_dir", "dataset.reg_dir", "sd-scripts"),
    ("class_data_dir", "dataset.reg_dir", "diffusers"),
    ("prior_loss_weight", "dataset.reg_weight", "diffusers, sd-scripts"),
    ("shuffle_caption", "dataset.shuffle_tags", "sd-scripts"),
    ("keep_tokens", "dataset.keep_tags", "sd-scripts"),
    ("caption_tag_dropout_rate", "dataset.tag_dropout", "sd-scripts"),
    ("caption_dropout_rate", "dataset.caption_dropout", "sd-scripts"),
    ("caption_dropout_every_n_epochs", "dataset.caption_dropout_every_epochs", "sd-scripts"),
    ("enable_wildcard", "dataset.wildcards", "sd-scripts; another line each time is `caption_lines: random`"),
    ("caption_weights", "dataset.caption_weights", "common"),
    ("weighted_captions", "dataset.caption_weights", "sd-scripts"),
)
"""Other tools' names for these keys: the word, our key, and who writes it so."""
