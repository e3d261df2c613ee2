"""Presets of text mode: a word for several keys, each of which a config may still say otherwise.

`simple`, `complex` and `minimal` are those of the tutorials that people come from; of `domain` these say only that the
rank is 8 to 16, and the rest of it is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from patina.configyaml import Entry

if TYPE_CHECKING:
    from patina.config import Config

TWO, FOUR = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
SEVEN = (*FOUR, "gate_proj", "up_proj", "down_proj")
KEYS = ("lora_rank", "lora_alpha", "lora_target", "network.dropout")
"""What a preset says, in the order of its row."""
PRESETS: Mapping[str, tuple[int, float, tuple[str, ...], float]] = {
    "simple": (4, 8.0, TWO, 0.05),
    "domain": (8, 16.0, FOUR, 0.05),
    "complex": (16, 32.0, SEVEN, 0.1),
    "minimal": (2, 4.0, ("q_proj",), 0.0),
}


def fill(given: dict[str, Entry]) -> None:
    """Give keys that are not written the values of the preset that is, if it is one."""
    chosen = given.get("preset")
    if chosen is None or chosen.value not in PRESETS:
        return
    for key, value in zip(KEYS, PRESETS[str(chosen.value)], strict=True):
        if key not in given or given[key].value is None:
            given[key] = replace(chosen, key=key, value=list(value) if isinstance(value, tuple) else value)


def says(config: Config) -> str | None:
    """What a run's preset sets, and what the config says otherwise; None without one."""
    if config.preset is None:
        return None
    found: tuple[Any, ...] = (config.lora_rank, config.alpha, config.lora_target, config.network.dropout)
    rows = list(zip(KEYS, PRESETS[config.preset], found, strict=True))
    kept = [f"{key} {_shown(value)}" for key, value, now in rows if value == now]
    other = [f"{key} is {_shown(now)}, as the config says" for key, value, now in rows if value != now]
    return f"preset: {config.preset}: {'; '.join([', '.join(kept), *other] if kept else other)}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else f"{value:g}"
