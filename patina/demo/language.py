"""The embedded language model: a small Llama with a tokenizer of its own, taught to answer questions on scenes."""

# diffusers and transformers annotate one-tuples and dicts where they take and give more: not ours to mend.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from patina.demo.fit import Round, fit, in_bfloat16
from patina.demo.questions import Question, questions

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LENGTH = 128
"""Longest row in training, in tokens."""
PROMPT_WEIGHT = 0.1
"""Weight of the question's tokens in the loss beside the answer's 1: enough to know every mark it may be asked for."""


def teach(work: Path, out: Path, device: torch.device, rounds: Sequence[Round]) -> None:
    """Train tokenizer and model on one question a scene and save both to `out`, fp16; `work` is not needed."""
    torch.manual_seed(0)
    (plan,) = rounds
    asked = questions(plan.scenes, plan.seed)
    tokenizer = _tokenizer(asked)
    model = LlamaForCausalLM(_shape(len(tokenizer), tokenizer)).to(device).train()
    answer = in_bfloat16(model)
    ids, weights = (part.to(device) for part in _rows(tokenizer, asked))

    def loss() -> Tensor:
        picked = torch.randint(len(ids), (plan.batch,), device=device)
        tokens, weight = ids[picked].long(), weights[picked][:, 1:].float()
        logits = answer(input_ids=tokens[:, :-1], use_cache=False).logits
        each = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return (each * weight.flatten()).sum() / weight.sum()

    fit(loss, [model], plan, name="language")
    tokenizer.save_pretrained(out)
    model.half().save_pretrained(out)


def _tokenizer(asked: list[Question]) -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    corpus = (text for q in asked[:20000] for text in (q.prompt, q.answer, q.as_json()))
    trained.train_from_iterator(corpus, vocab_size=768, special_tokens=[PAD, START, END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token=PAD, eos_token=END, additional_special_tokens=[START]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 256
    return tokenizer


def _shape(vocabulary: int, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _rows(tokenizer: PreTrainedTokenizerFast, asked: list[Question]) -> tuple[Tensor, Tensor]:
    """Token ids [N, LENGTH] and their weights in the loss: the answer's, its end token's too, 1; padding's 0."""
    prompts = [prompt_text(tokenizer, q.prompt) for q in asked]
    heads = tokenizer(prompts, add_special_tokens=False).input_ids
    tails = tokenizer([f"{q.answer}{END}\n" for q in asked], add_special_tokens=False).input_ids
    ids = torch.full((len(asked), LENGTH), tokenizer.pad_token_id, dtype=torch.int16)
    weights = torch.zeros(len(asked), LENGTH, dtype=torch.float16)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        tokens = (head + tail)[:LENGTH]
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int16)
        weights[row, : len(tokens)] = PROMPT_WEIGHT
        weights[row, len(head) : len(tokens)] = 1
    return ids, weights


def prompt_text(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """A question as the model is asked it: the chat template up to where the answer begins."""
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
