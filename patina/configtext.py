"""The `text:` and `validation:` sections: how conversations are written, learned and tested; other tools' words too."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from patina.configtypes import Count, Folder, Section, Text, Texts


class TextMode(Section):
    """Text mode: how conversations are written for the model, and what it learns of them."""

    template: Text = "auto"
    """How a conversation is written. `auto`: by the tokenizer's own chat template, or `instruction` where it has none;
    `instruction` (`### Instruction:`, `### Response:`), `instruction-zh` (`### 指令:`, `### 回答:`), or the path of
    your own Jinja file. Chats with the trained model must use the same."""
    columns: Annotated[Texts, Field(examples=[("question=标题", "answer=正文")])] = ()
    """What headings mean that are not known, each `MEANING=HEADING`: question, answer, input, system, history,
    conversation or text; in classification, text or label. Empty: by their names, or guessed, which the run says."""
    train_on: Literal["answers", "all"] = "answers"
    """What is learned: `answers`, each with the token that ends it, or `all`, the questions too."""
    packing: Literal["auto", "true", "false"] = "auto"
    """Lay several conversations end to end in rows of `max_length` tokens, in which they cannot see each other: no
    padding is computed, and `batch_size` counts such rows. `auto`: where the model can, and enough steps remain."""
    labels: Annotated[Texts, Field(examples=[("negative", "positive")])] = ()
    """Classification: the labels in the order in which the model numbers them, from 0. Empty: those of `train_data`,
    sorted."""


class Validation(Section):
    """Measuring on pictures or texts that are not trained on."""

    every: Annotated[Count | None, Field(examples=[100])] = None
    """Optimizer steps between two measurements of the loss. Empty: as often as is saved, and at the end."""
    split: Annotated[float | None, Field(gt=0, lt=1, examples=[0.1])] = None
    """Share of the training data that is held out to measure on, where nothing else is named; rows that ask the same go
    together. Empty: none."""
    data_dir: Annotated[Folder | None, Field(examples=[Path("./data/style_test")])] = None
    """Folder with other pictures and their captions to measure on. Text mode names `validation_data` instead."""
    generate: Annotated[Count | None, Field(examples=[50])] = None
    """Text mode: how many of the questions that are measured on are answered, at each measurement, and compared with
    the answers that were wanted: BLEU, ROUGE-L, exact matches, and JSON where it was wanted. Empty: none."""
    patience: Annotated[Count | None, Field(examples=[3])] = None
    """How many measurements in a row may bring no lower loss before the run ends; what is saved at the end is then the
    state with the lowest. Empty: the run takes all its steps, and its last state is saved."""


TEXT_ALIASES = (
    ("eval_dataset", "validation_data", "LLaMA-Factory"),
    ("val_data", "validation_data", "common"),
    ("cutoff_len", "max_length", "LLaMA-Factory"),
    ("max_seq_length", "max_length", "trl, common"),
    ("max_seq_len", "max_length", "common"),
    ("model_max_length", "max_length", "transformers"),
    ("packing", "text.packing", "LLaMA-Factory, trl"),
    ("neat_packing", "text.packing", "LLaMA-Factory"),
    ("template", "text.template", "LLaMA-Factory"),
    ("quantization_bit", "quantize", "LLaMA-Factory"),
    ("val_size", "validation.split", "LLaMA-Factory"),
    ("eval_steps", "validation.every", "LLaMA-Factory, transformers"),
    ("early_stopping_patience", "validation.patience", "transformers"),
    ("early_stopping_steps", "validation.patience", "LLaMA-Factory; measurements there too"),
    ("validation_split", "validation.split", "sd-scripts"),
    ("validate_every_n_steps", "validation.every", "sd-scripts"),
    ("lora_dropout", "network.dropout", "LLaMA-Factory, peft"),
    ("use_rslora", "network.rslora", "LLaMA-Factory, peft"),
    ("loraplus_lr_ratio", "network.loraplus_ratio", "LLaMA-Factory"),
)
"""Other tools' names for keys: the word, our key, and who writes it so."""

TEXT_SYNONYMS: dict[str, dict[str, str | None]] = {
    "task_type": {
        **dict.fromkeys(("causal_lm", "text", "sft"), "text-generation"),
        **dict.fromkeys(("seq_cls", "sequence-classification", "classification"), "text-classification"),
    },
    "quantize": {"4": "4bit", "8": "8bit", "nf4": "4bit", "int8": "8bit"},
    "text.packing": {"yes": "true", "on": "true", "no": "false", "off": "false"},
}
"""Other spellings of values, in lower case."""

IMPLIED = (
    ("load_best_model_at_end", "validation.patience", "the best state is saved where validation.patience is given"),
    ("predict_with_generate", "validation.generate", "questions are answered where validation.generate is given"),
)
"""Other tools' switches that a key of ours being given stands for: the word, our key, and why."""
