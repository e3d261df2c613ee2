"""Image mode's part of a run: its batches, previews, and the file for WebUIs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from patina import export
from patina.check.first import first_look
from patina.config import Config
from patina.configdata import PictureSet
from patina.course import measures
from patina.data.captions import Captioned
from patina.data.dataset import Item, epochs, heaviest, load_items, parted, report, unencoded
from patina.data.folders import captioned_pictures
from patina.data.masks import Masking, note
from patina.data.prior import as_prior
from patina.data.texts import Texts
from patina.data.variants import Variety, varied
from patina.data.wording import notes, plain, told, wording_of
from patina.engine.precision import DTYPES, Precision
from patina.errors import speaks
from patina.facts import training_facts
from patina.family import Family
from patina.heldout import HeldOut, split
from patina.loop import Plan
from patina.lora import metadata
from patina.resume import PATHS, fingerprint, of_pictures
from patina.task import Batch
from patina.tasks.image import ImageTask
from patina.watch.console import farewell, say
from patina.watch.previews import Previews
from patina.watch.watcher import Watcher

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

FIRST_CAPTIONS = 4
"""Captions that previews draw where the config names no prompts."""


class Found(NamedTuple):
    """The pictures of a run."""

    trained: list[Captioned]
    """Behind them those of regularisation."""
    unseen: list[Captioned]
    """Which are measured on, with the captions that they always have, and all alike."""


def find(config: Config) -> Found:
    """The pictures that the config names, with their captions."""
    data, trained = config.dataset, [pair for one in config.picture_sets for pair in _looked_at(config, one)]
    if config.validation.split is not None:
        trained, unseen = split(trained, config.validation.split, config.seed)
    else:
        folder = config.validation.data_dir
        unseen = _captioned(PictureSet(folder, None, config.trigger_word, 1.0, data)) if folder else []
    if data.reg_dir is not None:
        once = data.model_copy(update={"repeats": 1})  # of these an epoch shows as many as of the others
        trained += as_prior(_captioned(PictureSet(data.reg_dir, None, None, data.reg_weight, once)), config.triggers)
    for line in varied(trained, config.buckets) if speaks() else ():
        say(f"variants: {line}")
    return Found(trained, [Captioned(pair.path, plain(pair.caption, pair.wording), pair.folder) for pair in unseen])


def _looked_at(config: Config, one: PictureSet) -> list[Captioned]:
    """The pictures of a folder to train on, with a word on what is wrong with them."""
    captioned = _captioned(one)
    if speaks():
        several = [_summed_up(one, len(captioned))] if len(config.picture_sets) > 1 else []
        for line in [*several, *first_look(one.folder, captioned, config.buckets, one.trigger)]:
            say(f"  {line}")
    return captioned


def _summed_up(one: PictureSet, pictures: int) -> str:
    times = f", {one.rules.repeats} times an epoch" if one.rules.repeats > 1 else ""
    word = f", trigger word {one.trigger}" if one.trigger else ""
    weight = f", each counts {one.weight:g} times in the loss" if one.weight != 1 else ""
    return f"subset    {one.folder}: {pictures} pictures{times}{word}{weight}"


def _captioned(one: PictureSet) -> list[Captioned]:
    rules = one.rules
    captioned = captioned_pictures(one.folder, one.table, say, rules.allow_links)
    for line in notes([pair.caption for pair in captioned], rules.caption_lines, one.trigger):
        say(line)
    return [
        replace(
            pair,
            caption=told(pair.caption, rules.caption_lines, one.trigger),
            repeats=rules.repeats * pair.repeats,
            weight=one.weight * pair.weight,
            wording=wording_of(rules, one.trigger),
            variety=Variety(rules.flip, rules.crop == "random", rules.colour, rules.variants),
        )
        for pair in captioned
    ]


def load(config: Config, found: Found, pipe: DiffusionPipeline) -> tuple[list[Item], list[Item]]:
    """The pictures to train on, and those to measure on, which have no variants; all encoded."""
    how = {
        "buckets": config.buckets,
        "cache_dir": config.cache_dir,
        "workers": config.dataset.workers,
        "masking": Masking(config.dataset.masks, config.dataset.unmasked_weight),
    }
    items = load_items(found.trained, pipe.vae, **how)
    masks = [mask for item in parted(items)[0] if (mask := item.latents[0].mask) is not None]
    if masks and (line := note(masks, config.dataset.masks)):
        say(line)
    return items, load_items(found.unseen, pipe.vae, **how) if found.unseen else []


def size_up(config: Config, found: Found, pipe: DiffusionPipeline) -> tuple[list[Item], list[Item]]:
    """As `load`, for a run that is only planned: what is measured on is left out."""
    items = unencoded(
        found.trained,
        buckets=config.buckets,
        channels=pipe.vae.config.latent_channels,
        scale=pipe.vae_scale_factor,
        masked=config.dataset.masks != "off",
    )
    return items, []


@dataclass(frozen=True)
class Pictures:
    """What a run on pictures trains on, shows and writes; a `patina.session.Medium`."""

    config: Config
    family: Family
    pipe: DiffusionPipeline
    task: ImageTask
    precision: Precision
    plan: Plan
    items: list[Item]
    texts: Texts | None
    """None: captions are encoded anew at every step, as the text encoders learn or the captions change."""
    began: float
    held: HeldOut | None
    """What is measured on."""

    @property
    def what(self) -> str:
        return f"a LoRA for {self.family.name}"

    @property
    def result(self) -> Path:
        return self.config.output_dir / f"{self.config.name}.safetensors"

    def report(self) -> Sequence[str]:
        unseen = [f"{len(self.held.items)} others to measure on"] if self.held else []
        return [f"pictures  {line}" for line in [*report(self.items), *unseen]]

    def settings(self) -> Mapping[str, object]:
        trained, prior = parted(self.items)
        derived = {
            "dataset.bucket_step": self.config.bucket_step,
            "pictures": len(trained),
            "pictures an epoch": sum(item.repeats for item in trained),
            "regularisation pictures": len(prior),
            "dataset.subsets": len(self.config.dataset.subsets),
            **{
                f"dataset.subsets[{at}].{key}": value
                for at, subset in enumerate(self.config.dataset.subsets)
                for key, value in subset.model_dump(mode="json", exclude=set(PATHS)).items()
            },
            "captions and names": self._captions,
        }
        return {**of_pictures(self.config.model_dump(mode="json"), self.task), **derived}

    @cached_property
    def _captions(self) -> str:
        said = (f"{item.path.name}\0{item.caption}{_showing(item)}" for item in self.items)
        return fingerprint(text.encode(errors="surrogateescape") for text in said)

    def advice(self) -> Sequence[str]:
        return ()

    def batches(self, start: int) -> Iterator[Batch]:
        config = self.config
        batches = epochs(self.items, config.batch_size, config.seed, start)
        return map(self.texts.into, batches) if self.texts else batches

    def heaviest(self) -> Batch:
        batch = heaviest(self.items, self.config.batch_size)
        return self.texts.into(batch) if self.texts else batch

    def watcher(self, start: int, config: str) -> Watcher:
        folder, steps, previews = self.config.output_dir, self.plan.steps, self._previews()
        if not self.held:
            return Watcher(folder, steps, start, previews, config)
        due = partial(measures, self.config, self.plan)
        return Watcher(folder, steps, start, previews, config, measure=self.held.measure, due=due)

    def farewell(self, path: Path, watcher: Watcher) -> None:
        watcher.thumbnail(path)
        farewell(path, ", ".join(self.config.triggers), self.config.output_dir / "logs")

    def _previews(self) -> Previews | None:
        wanted = self.config.preview
        if not wanted.every:
            return None
        return Previews(
            self.pipe,
            prompts(self.config, self.items),
            every=wanted.every,
            folder=self.config.output_dir / "samples",
            negative_prompt=wanted.negative_prompt,
            steps=wanted.steps,
            guidance=wanted.guidance,
            seed=wanted.seed,
            size=(self.config.resolution, self.config.resolution),
            dtype=self.precision.dtype,
            encode=self.texts or self.task.encode,
        )

    def exporter(self) -> export.Exporter:
        config = self.config
        spec = metadata.Modelspec(
            prediction_type=self.pipe.scheduler.config.prediction_type,
            trigger_phrase=", ".join(config.triggers) or None,
            implementation_version=f"patina/{version('patina')}",
        )
        modules = self.task.adapted()
        dtype = DTYPES[config.save_precision]
        facts = training_facts(config, self.plan, self.items, self.began)
        alpha, rank = facts.network_alpha, facts.network_dim
        bake = rank if config.network.dora_export == "baked" else None
        level = config.metadata
        return export.Exporter(
            self.family, modules, config.output_dir, config.name, alpha, dtype, facts, spec, level, bake
        )


def _showing(item: Item) -> str:
    weight = "" if item.weight == 1 else f"\0{item.weight}"
    return f"{weight}\0prior {item.repeats}" if item.prior else weight


def prompts(config: Config, items: Sequence[Item]) -> tuple[str, ...]:
    """What previews draw."""
    captions = dict.fromkeys(item.plain for item in parted(items)[0])
    return config.preview.prompts or tuple(captions)[:FIRST_CAPTIONS]
