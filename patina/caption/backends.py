"""The backends of the labeller: a row each, and how rows asked for become one captioner."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from patina.caption.captioner import Captioner
from patina.caption.chain import Chain
from patina.data.images import open_image
from patina.errors import PatinaError

COCA = "coca_ViT-L-14:mscoco_finetuned_laion2b_s13b_b90k"


@dataclass(frozen=True)
class Wish:
    """What the user asks of a backend; each backend takes from it what it has use for."""

    model: str = ""
    prompt: str | None = None
    max_tokens: int | None = None
    quantize: Literal["none", "8bit", "4bit"] = "none"
    general: float = 0.35
    character: float = 0.85
    url: str = "http://127.0.0.1:8000/v1"
    key_env: str = ""
    seed: int = 0
    styles: tuple[str, ...] = ()
    """Names of styles that a backend which can match text with pictures shall rank."""


@dataclass(frozen=True)
class Backend:
    """A row: how to make it, and what is true of it."""

    make: Callable[[Wish], Any]
    """Returns a Captioner. Imports what it needs: a library that is not asked for is not loaded."""
    batch: int
    """Pictures at a time on a GPU; halved where they do not fit."""
    tags: bool = False
    asked: bool = False
    """Its question can hold what taggers before it found."""
    quantizes: bool = False
    alike: Callable[[Any], int] = lambda _: 0
    """A number for a prepared picture; a batch holds those with the same, where size decides what one costs."""
    reads_files: bool = False
    """It needs the file itself (`read(path)`) and not the picture in it."""
    loads: bool = True
    """It must be loaded; what need not is spared waiting for torch."""


@dataclass(frozen=True)
class Chosen:
    """A captioner and how to feed it."""

    captioner: Captioner
    read: Callable[[Path], Any]
    """A file to what `generate` takes a list of; runs in threads."""
    batch: int
    alike: Callable[[Any], int]
    loads: bool
    """Whether it must be loaded."""


def _coca(wish: Wish) -> Captioner:
    from patina.caption.coca import MAX_TOKENS, CocaCaptioner

    return CocaCaptioner(wish.model or COCA, wish.max_tokens or MAX_TOKENS, wish.styles)


def _hub(name: str) -> Callable[[Wish], Captioner]:
    def make(wish: Wish) -> Captioner:
        from patina.caption.asking import MAX_TOKENS
        from patina.caption.hub import HubCaptioner

        recipe = import_module(f"patina.caption.{name}").RECIPE
        tokens = wish.max_tokens or MAX_TOKENS
        return HubCaptioner(recipe, wish.model, prompt=wish.prompt, max_tokens=tokens, quantize=wish.quantize)

    return make


def _wd(wish: Wish) -> Captioner:
    from patina.caption.wd import WdTagger

    return WdTagger(wish.model, general=wish.general, character=wish.character)


def _server(wish: Wish) -> Captioner:
    from patina.caption.asking import MAX_TOKENS
    from patina.caption.server import ServerCaptioner

    if wish.key_env and wish.key_env not in os.environ:
        raise PatinaError(f"--key-env {wish.key_env}: there is no such variable; write: export {wish.key_env}=...")
    key, tokens = os.environ.get(wish.key_env, ""), wish.max_tokens or MAX_TOKENS
    return ServerCaptioner(wish.model, url=wish.url, key=key, prompt=wish.prompt, max_tokens=tokens, seed=wish.seed)


def _offline(_wish: Wish) -> Captioner:
    from patina.caption.offline import OfflineCaptioner

    return OfflineCaptioner()


def _half_octaves(image: Image.Image) -> int:
    """Pictures whose areas, and so their tokens, are within a factor of about 1.4."""
    return round(2 * math.log2(image.width * image.height))


BACKENDS = {
    "coca": Backend(_coca, batch=64),
    "blip": Backend(_hub("blip"), batch=32, quantizes=True),
    "blip2": Backend(_hub("blip2"), batch=16, quantizes=True),
    "florence2": Backend(_hub("florence2"), batch=32, quantizes=True),
    "vlm": Backend(_hub("vlm"), batch=8, asked=True, quantizes=True, alike=_half_octaves),
    "wd": Backend(_wd, batch=64, tags=True),
    "openai": Backend(_server, batch=8, asked=True),
    "offline": Backend(_offline, batch=64, reads_files=True, loads=False),
}


def choose(asked_for: Sequence[str], wish: Wish, embedded: Callable[[], str]) -> Chosen:
    """`NAME` or `NAME=MODEL`, several in a row, to one captioner; nothing is loaded yet.

    `auto` is CoCa with the model that was named, or with the one that `embedded` finds. `wish.model` is for the last
    of them. Raises PatinaError for names that do not exist and combinations that do not work.
    """
    pairs = [_named(text, wish, embedded) for text in asked_for]
    if pairs and wish.model and not pairs[-1][1].model:
        pairs[-1] = (pairs[-1][0], replace(pairs[-1][1], model=wish.model))
    rows = [BACKENDS[name] for name, _ in pairs]
    _check(pairs, rows, wish)
    made = [row.make(own) for row, (_, own) in zip(rows, pairs, strict=True)]
    captioner = made[0] if len(made) == 1 else Chain(made[:-1], made[-1])
    batch, last = min(row.batch for row in rows), rows[-1]
    alike = last.alike if len(made) == 1 else lambda prepared: last.alike(prepared[-1])
    if last.reads_files:
        return Chosen(captioner, made[-1].read, batch, alike, last.loads)
    return Chosen(captioner, lambda path: captioner.prepare(open_image(path)), batch, alike, last.loads)


def _named(text: str, wish: Wish, embedded: Callable[[], str]) -> tuple[str, Wish]:
    name, _, model = text.partition("=")
    if name == "auto":
        named = model or wish.model
        # The embedded model was never taught styles, so that its ranking of them would be a guess.
        return "coca", replace(wish, model=named) if named else replace(wish, model=embedded(), styles=())
    if name not in BACKENDS:
        raise PatinaError(f"--backend {text}: there is no such backend; known are: auto, {', '.join(BACKENDS)}")
    return name, replace(wish, model=model)


def _check(pairs: Sequence[tuple[str, Wish]], rows: Sequence[Backend], wish: Wish) -> None:
    names = [name for name, _ in pairs]
    if len(rows) > 1 and not (all(row.tags for row in rows[:-1]) and rows[-1].asked):
        taggers, asked = _having(lambda row: row.tags), _having(lambda row: row.asked)
        raise PatinaError(
            f"--backend {' --backend '.join(names)}: only taggers ({taggers}) can come first, and only what can be "
            f"asked ({asked}) last; for example --backend wd --backend vlm"
        )
    if wish.quantize != "none" and not rows[-1].quantizes:
        able = _having(lambda row: row.quantizes)
        raise PatinaError(f"--quantize {wish.quantize}: not with {names[-1]}, only with {able}")


def _having(fact: Callable[[Backend], bool]) -> str:
    return ", ".join(name for name, row in BACKENDS.items() if fact(row))
