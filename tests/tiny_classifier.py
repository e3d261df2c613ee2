"""Bases for classification with a few thousand weights, as hubs have them: without a head; and texts to tell apart."""

import json
from pathlib import Path

from tokenizers import processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.tiny_text import END, PAD, START, built, qwen2, tokenizer

WORDS = {"bad": ("awful", "dull", "poor"), "fine": ("fine", "okay", "fair"), "good": ("great", "lovely", "superb")}
"""Label -> what a text of it says."""
BERT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
WIDE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)


def distilbert(**facts) -> DistilBertForMaskedLM:
    shape = dict(dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64)
    return built(DistilBertForMaskedLM, DistilBertConfig, 0, {**shape, **facts})


def bert(**facts) -> BertForMaskedLM:
    """Without a pooler, as after masked language modelling alone."""
    return built(BertForMaskedLM, BertConfig, 0, {**BERT, "max_position_embeddings": 64, **facts})


def roberta(**facts) -> RobertaForMaskedLM:
    """Its padding is token 1, and positions begin after that."""
    made = built(
        RobertaForMaskedLM, RobertaConfig, 0, {**BERT, "max_position_embeddings": 66, "pad_token_id": 1, **facts}
    )
    return made


BASES = {"distilbert": distilbert, "bert": bert, "qwen2": qwen2}


def reader(kind: str) -> PreTrainedTokenizerFast:
    """A byte a token; encoders get one before each text, which the head hears, and one after it."""
    found = tokenizer(template=None)
    if kind != "qwen2":
        ends = [(word, found.convert_tokens_to_ids(word)) for word in (START, END)]
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{START} $A {END}", special_tokens=ends)
    assert found.pad_token == PAD
    return found


def save(folder: Path, kind: str, model: PreTrainedModel | None = None) -> Path:
    """A base as transformers keeps it."""
    (model or BASES[kind]()).save_pretrained(folder)
    reader(kind).save_pretrained(folder)
    return folder


def rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """Texts of every label in turn, no two alike."""
    labels = list(WORDS)
    found = []
    for number in range(first, first + count):
        label = labels[number % 3]
        found.append({"text": f"{WORDS[label][number // 3 % 3]} film {number}", "label": label})
    return found


def write(path: Path, made: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path
