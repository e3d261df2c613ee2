"""The caption cache: what frozen text encoders make of each caption, made once, so that they need not stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from patina.clip import Reading
from patina.data.entries import fingerprint_of, place, write
from patina.data.shards import Shards, pack
from patina.errors import PatinaError
from patina.family import Family
from patina.task import Batch

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from patina.engine.precision import Precision

FORMAT = 1
"""Part of every key; one more whenever an entry of the same caption would come out differently."""

Row = dict[str, Tensor]
"""One caption as a family's `encode` gives it, without the first dimension, on the CPU."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Captions that were encoded beforehand.

    Kept in the numbers that the denoiser computes in (fp16, bf16 or fp32): its layers turn them into those first
    thing, so that nothing is lost. In fp16 a caption of 75 tokens takes 118 KB for SD1.5 and 318 KB for SDXL.
    """

    rows: Mapping[str, Row]

    def __call__(self, captions: Sequence[str]) -> Row:
        """As a family's `encode`: one row a caption, where they differ in chunks the shorter with empty ones behind.

        Each caption must be among those that were encoded.
        """
        rows = [self.rows[caption] for caption in captions]
        return {name: torch.stack(self._padded(name, [row[name] for row in rows])) for name in rows[0]}

    def into(self, batch: Batch) -> Batch:
        """The batch with its captions encoded, as `cond`."""
        return {**batch, "cond": self(batch["captions"])}

    def _padded(self, name: str, parts: list[Tensor]) -> list[Tensor]:
        """Only what is told token by token, [T,W], has lengths; an empty chunk is the empty caption's."""
        if parts[0].dim() == 1:
            return parts
        blank, most = self.rows[""][name], max(map(len, parts))
        return [torch.cat([part, *[blank] * ((most - len(part)) // len(blank))]) for part in parts]


@torch.no_grad()
def encode_texts(
    family: Family,
    pipe: DiffusionPipeline,
    captions: Iterable[str],
    reading: Reading,
    precision: Precision,
    folder: Path,
) -> Texts:
    """Every caption encoded, the empty one too: taken from the cache in `folder`, or made and put there.

    The encoders run where they are, as they would in training, and leave the accelerator. One caption at a time, so
    that an entry is a function of its key: in a batch the last bits would depend on the neighbours. Raises PatinaError
    where an encoder's numbers are not finite.
    """
    encoder = _fingerprint(family, pipe)
    rest = [FORMAT, encoder, astuple(reading), str(precision.dtype)]
    keys, kept = {caption: _key(caption, rest) for caption in (*captions, "")}, Shards(folder)
    rows = {caption: row for caption, key in keys.items() if (row := kept.read(key)) is not None}
    missing = [caption for caption in keys if caption not in rows]
    for caption in tqdm(missing, desc="caching captions", unit="caption", disable=None if missing else True):
        with precision.autocast():
            said = family.encode(pipe, [caption], reading)
        rows[caption] = {name: part[0].to("cpu", precision.dtype).contiguous() for name, part in said.items()}
        if not all(bool(part.isfinite().all()) for part in rows[caption].values()):
            raise PatinaError(
                f"the text encoder makes numbers of the caption {caption[:60]!r} that are not finite; "
                "write mixed_precision: bf16 (or fp32), or else download the base model again"
            )
        write(place(folder, keys[caption]), rows[caption])
    if missing:
        pack(folder)
    for name in family.text_encoders:
        getattr(pipe, name).to("cpu")
    return Texts(rows)


def _key(caption: str, rest: list[object]) -> str:
    return hashlib.sha256(json.dumps([caption, *rest]).encode()).hexdigest()


def _fingerprint(family: Family, pipe: DiffusionPipeline) -> str:
    """A digest of all that decides what becomes of a caption: the encoders, and the words that the tokenizers know."""
    parts = []
    for name in family.text_encoders:
        encoder, tokenizer = getattr(pipe, name), getattr(pipe, name.replace("text_encoder", "tokenizer"))
        parts += [fingerprint_of(encoder.config.to_dict(), encoder.state_dict())]
        parts += [json.dumps(tokenizer.get_vocab(), sort_keys=True), tokenizer.pad_token]
    return hashlib.sha256(json.dumps([family.name, *parts]).encode()).hexdigest()
