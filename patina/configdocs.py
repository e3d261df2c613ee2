"""Writes docs/config.md from the schema and its tables: `python -m patina.configdocs`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from patina.config import Config, Section, kinds, lists, sections
from patina.configfile import spell
from patina.configtext import IMPLIED
from patina.configvalues import READERS, choices_of
from patina.configwords import AGREED, ALIASES, SYNONYMS
from patina.errors import run_command
from patina.files import write_text

PAGE = Path(__file__).parent.parent / "docs" / "config.md"

EXAMPLE = """\
train_data_dir: ./data/style_train
metadata_path: ./data/style_train/metadata.csv
base_model: ./models/stable-diffusion-v1-5
lora_rank: 8
lora_alpha: 16
batch_size: 4
epochs: 10
learning_rate: 2e-4
optimizer: adamw8bit
scheduler: cosine
output_dir: ./output/my_style_lora
save_steps: 100
"""

INTRO = f"""\
<!-- Written by `python -m patina.configdocs` from patina/config.py. Change that file, not this page. -->
# The config

A run is described by one YAML file:

```yaml
{EXAMPLE}```

Only `train_data_dir` (in text mode `train_data`), `base_model` and `output_dir` must be given; every other key has the
default listed here, and a key without a value has it too. Paths are relative to the folder that the command is started
in; `~` is your home. Keys of a section are indented under its name, or written with a dot:

```yaml
noise:
  noise_offset: 0.05
preview.every: 100
```

The same words, written `key=value` or `section.key=value` after the command, win over the file. Unknown keys are
refused, and all mistakes are reported at once, each with its line and what to write instead. YAML's anchors, aliases
and tags are not supported.
"""

LIMITS = {
    "exclusiveMinimum": "more than {}",
    "minimum": "{} or more",
    "exclusiveMaximum": "less than {}",
    "maximum": "at most {}",
    "multipleOf": "a multiple of {}",
}
"""JSON Schema's limits in words."""

WORDS = """\
## Names from other trainers

These are accepted in place of our own keys. Giving a key twice under two names is fine only if the values agree.

| Word | Means | Written by |
|---|---|---|
"""

VALUES = """\
## Values from other trainers

Upper and lower case do not matter where a key has fixed choices.

| Key | Written | Means |
|---|---|---|
"""

ACCEPTED = """\
## Words that change nothing

These are accepted when they say what Patina does anyway, and refused otherwise.

| Accepted | Because |
|---|---|
"""


OF_A_LIST = "On the command line and in messages the first one's keys are `{key}[0].KEY`."


def render() -> str:
    """The whole page."""
    parts = [INTRO, "## Keys\n", _table(Config)]
    for name, kind in sections().items():
        parts += [f"## Section `{name}`\n", f"{kind.__doc__}\n", _table(kind)]
        parts += [
            part
            for key, item in lists().items()
            if key.startswith(f"{name}.")
            for part in (f"### Each of `{key}`\n", f"{item.__doc__}\n", f"{OF_A_LIST.format(key=key)}\n", _table(item))
        ]
    parts += [WORDS + _rows((f"`{alias.word}`", f"`{alias.key}`", alias.note) for alias in ALIASES)]
    parts += [VALUES + _rows(_value_row(key, value) for key in SYNONYMS for value in SYNONYMS[key].items())]
    parts += [ACCEPTED + _rows((f"`{row.word}: {row.value}`", row.why) for row in AGREED)]
    parts[-1] += _rows((f"`{word}`", why) for word, _, why in IMPLIED)
    return "\n".join(parts)


def _table(kind: type[Section]) -> str:
    """The keys of one level, the sections within it left out."""
    shapes = kind.model_json_schema()["properties"]
    rows = {key: field for key, field in kind.model_fields.items() if key not in sections()}
    head = "| Key | Type | Default | Meaning |\n|---|---|---|---|\n"
    return head + _rows((f"`{k}`", _type(f, shapes[k]), _default(f), _meaning(f)) for k, f in rows.items())


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def _value_row(key: str, value: tuple[str, str | None]) -> tuple[str, str, str]:
    written, means = value
    return f"`{key}`", f"`{written}`", "(empty)" if means is None else f"`{means}`"


def _type(field: FieldInfo, shape: dict[str, Any]) -> str:
    """The field's type in words, with its limits, which `shape` has in the terms of JSON Schema."""
    allowed = kinds(field.annotation)
    names = [f"`{word}`" for word in choices_of(allowed)] + [_type_name(kind) for kind in allowed if _type_name(kind)]
    parts = [shape, *shape.get("anyOf", ())]
    return ", ".join(
        [" or ".join(names), *(LIMITS[k].format(spell(part[k])) for part in parts for k in LIMITS if k in part)]
    )


def _type_name(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list of texts" if get_args(kind)[0] not in lists().values() else "a list of sections, or of paths"
    return READERS[kind][1] if kind in READERS else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    return "(empty)" if field.default in (None, "", ()) else f"`{spell(field.default)}`"


def _meaning(field: FieldInfo) -> str:
    assert field.description, "every field of the schema has a docstring"
    return " ".join(field.description.split())


def main() -> int:
    """Write the page."""
    write_text(PAGE, render())
    return 0


if __name__ == "__main__":
    run_command(main)
