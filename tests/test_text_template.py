"""Templates and masks: which tokens of a conversation are trained, against masks made by hand for ten templates."""

# ruff: noqa: RUF001
import pytest
import torch
from transformers import AutoTokenizer

from patina.errors import PatinaError
from patina.text.dataset import encode_rows
from patina.text.rows import Row, Turn
from patina.text.template import TEMPLATES, choose_template
from tests.tiny_text import CHATML, END, PAD, tokenizer

TURNS = (Turn("user", "A?"), Turn("assistant", "Bé."), Turn("user", "C"), Turn("assistant", "D d"))
ROW = Row(TURNS, "chats.jsonl:7")
LEFT, RIGHT = "⟦", "⟧"
"""Around what is trained, in the rows written by hand below."""

QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
R1 = (  # without the parts for tools
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
R1_MARKS = (
    PAD,
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
)
MARKED = (  # as trl writes it
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{%- endgeneration %}{{ '\n' }}{% else %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CHATML_ROW = (
    "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n⟦Bé.<|im_end|>⟧\n"
    "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n⟦D d<|im_end|>⟧\n"
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
CASES = {
    "qwen2": (
        (QWEN2, (PAD, "<|im_start|>", END), None, END),
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + CHATML_ROW,
    ),
    "llama2": (
        (LLAMA2, (PAD, "<s>", "</s>"), "<s>", "</s>"),
        "<s>[INST] A? [/INST]⟦ Bé. </s>⟧<s>[INST] C [/INST]⟦ D d </s>⟧",
    ),
    "llama3": (
        (
            LLAMA3,
            (
                PAD,
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|eot_id|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
            ),
            "<|begin_of_text|>",
            "<|end_of_text|>",
        ),
        "<|begin_of_text|>"
        + HEADER.format("user")
        + "A?<|eot_id|>"
        + HEADER.format("assistant")
        + "⟦Bé.<|eot_id|>⟧"
        + HEADER.format("user")
        + "C<|eot_id|>"
        + HEADER.format("assistant")
        + "⟦D d<|eot_id|>⟧",
    ),
    "mistral": (
        (MISTRAL, (PAD, "<s>", "</s>"), "<s>", "</s>"),
        "<s>[INST] A? [/INST]⟦Bé.</s>⟧[INST] C [/INST]⟦D d</s>⟧",
    ),
    "gemma": (
        (GEMMA, (PAD, "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>"),
        "<bos><start_of_turn>user\nA?<end_of_turn>\n<start_of_turn>model\n⟦Bé.<end_of_turn>⟧\n"
        "<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n⟦D d<end_of_turn>⟧\n",
    ),
    "zephyr": (
        (ZEPHYR, (PAD, "<s>", "</s>"), "<s>", "</s>"),
        "<|user|>\nA?</s>\n<|assistant|>\n⟦Bé.</s>⟧\n<|user|>\nC</s>\n<|assistant|>\n⟦D d</s>⟧\n",
    ),
    "deepseek": (
        (
            DEEPSEEK,
            (PAD, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
        ),
        "<｜begin▁of▁sentence｜>User: A?\n\nAssistant:⟦ Bé.<｜end▁of▁sentence｜>⟧"
        "User: C\n\nAssistant:⟦ D d<｜end▁of▁sentence｜>⟧",
    ),
    "deepseek-r1": (
        (R1, R1_MARKS, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        "<｜begin▁of▁sentence｜><｜User｜>A?<｜Assistant｜>⟦Bé.<｜end▁of▁sentence｜>⟧"
        "<｜User｜>C<｜Assistant｜>⟦D d<｜end▁of▁sentence｜>⟧",
    ),
    "generation": ((MARKED, (PAD, "<|im_start|>", END), None, END), CHATML_ROW),
    "instruction": (
        (TEMPLATES["instruction"], (PAD, "<s>", "</s>"), "<s>", "</s>"),
        "<s>### Instruction:\nA?\n\n### Response:\n⟦Bé.</s>⟧\n\n### Instruction:\nC\n\n### Response:\n⟦D d</s>⟧",
    ),
    "instruction-zh": (
        (TEMPLATES["instruction-zh"], (PAD, END), None, END),
        "### 指令:\nA?\n\n### 回答:\n⟦Bé.<|im_end|>⟧\n\n### 指令:\nC\n\n### 回答:\n⟦D d<|im_end|>⟧",
    ),
}


def made(template, special, bos, eos, **options):
    return tokenizer(special, template, bos, eos, **options)


def by_hand(words, text: str) -> tuple[list[int], list[bool]]:
    """The tokens of a row written by hand, and which of them stand between the marks."""
    ids, trained = [], []
    for number, part in enumerate(text.replace(RIGHT, LEFT).split(LEFT)):
        piece = words(part, add_special_tokens=False)["input_ids"]
        ids += piece
        trained += [number % 2 == 1] * len(piece)
    return ids, trained


@pytest.mark.parametrize("case", CASES)
def test_the_mask_is_the_one_made_by_hand(case) -> None:
    given, text = CASES[case]
    words = made(*given)
    (row,) = choose_template(words).encode([ROW])
    ids, trained = by_hand(words, text)
    assert row.ids.tolist() == ids
    assert row.trained.tolist() == trained


@pytest.mark.parametrize("case", CASES)
def test_a_chat_asks_with_exactly_what_stood_before_the_answer_in_training(case) -> None:
    given, _ = CASES[case]
    template = choose_template(made(*given))
    (row,) = template.encode([ROW])
    starts = [at for at in range(1, len(row.ids)) if row.trained[at] and not row.trained[at - 1]]
    assert template.prompt(TURNS[:1]) == row.ids[: starts[0]].tolist()
    assert template.prompt(TURNS[:3]) == row.ids[: starts[1]].tolist()


@pytest.mark.parametrize("case", CASES)
def test_the_end_of_a_turn_is_the_tokenizers_own_token(case) -> None:
    given, text = CASES[case]
    words = made(*given)
    last = text.rpartition(RIGHT)[0].rpartition("<")[2]
    assert words.convert_ids_to_tokens(choose_template(words).end) == f"<{last}"


def test_all_is_every_token_but_the_first() -> None:
    (row,) = choose_template(tokenizer()).encode([ROW], everything=True)
    assert row.trained.tolist() == [False] + [True] * (len(row.ids) - 1)


def test_a_plain_text_is_learned_whole_with_its_end() -> None:
    words = made(MISTRAL, (PAD, "<s>", "</s>"), "<s>", "</s>")
    (row,) = choose_template(words).encode([Row((), "book.txt:1", "Es war.")])
    assert words.decode(row.ids) == "<s>Es war.</s>"
    assert words.decode(row.ids[row.trained]) == "Es war.</s>"


@pytest.mark.parametrize("case", ["qwen2", "llama2"])
def test_an_end_that_is_also_the_padding_is_trained_all_the_same(case) -> None:
    (template, special, bos, eos), text = CASES[case]
    words = made(template, special, bos, eos, pad=eos)
    assert words.pad_token_id == words.eos_token_id
    (row,) = choose_template(words).encode([ROW])
    assert row.trained.tolist() == by_hand(words, text)[1]


def test_the_embedded_models_merged_tokens_are_seen_right() -> None:
    words = AutoTokenizer.from_pretrained("data/demo/lm")
    answer = '{"answer": "two", "objects": ["fish"]}'
    (row,) = choose_template(words).encode([Row((Turn("user", "How many?"), Turn("assistant", answer)), "x:1")])
    assert words.decode(row.ids[row.trained]) == f"{answer}<|im_end|>"


def test_thoughts_that_a_template_sets_apart_are_trained_with_the_answer() -> None:
    """Qwen3's way: thoughts of earlier turns are dropped from the conversation, so that it is no prefix of itself."""
    jinja = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\nhm\n</think>\n\n' }}{% endif %}"
        "{{ said + '<|im_end|>\n' }}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = (
        Turn("user", "A"),
        Turn("assistant", "<think>\nso\n</think>\n\nB"),
        Turn("user", "C"),
        Turn("assistant", "D"),
    )
    words = tokenizer(template=jinja)
    (row,) = choose_template(words).encode([Row(turns, "x:1")])
    assert words.decode(row.ids[row.trained]) == "B<|im_end|><think>\nhm\n</think>\n\nD<|im_end|>"


def test_thoughts_that_a_template_takes_out_and_opens_for_the_next_answer_leave_the_answers_whole() -> None:
    """DeepSeek-R1's way. An answer that begins like the opened thought keeps its first letters."""
    words = made(R1, R1_MARKS, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    turns = (Turn("system", "Be."), Turn("user", "A"), Turn("assistant", "<think>\nso\n</think>\n\nB"))
    turns = (*turns, Turn("user", "C"), Turn("assistant", "<th> D"))
    (row,) = choose_template(words).encode([Row(turns, "x:1")])
    hand = (
        "<｜begin▁of▁sentence｜>Be.<｜User｜>A<｜Assistant｜>⟦\n\nB<｜end▁of▁sentence｜>⟧"
        "<｜User｜>C<｜Assistant｜>⟦<th> D<｜end▁of▁sentence｜>⟧"
    )
    assert (row.ids.tolist(), row.trained.tolist()) == by_hand(words, hand)


@pytest.mark.parametrize(
    ("jinja", "said"),
    [
        (CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"), "otherwise"),
        (CHATML.replace("message['content']", "message['content'] | upper"), "changes the words"),
        (CHATML.replace("'<|im_end|>'", "'</s>'"), "never learns to stop"),
        (
            GEMMA.replace("raise_exception('System role not supported')", "''") + "{{ raise_exception('no') }}",
            "refuses",
        ),
        ("{% for m in messages %}{{ m.content", "refuses"),
    ],
    ids=["prompt that the row has not", "other words", "no end", "raises", "no jinja"],
)
def test_a_template_that_hides_what_is_learned_is_refused(jinja, said) -> None:
    with pytest.raises(PatinaError, match=rf"chats\.jsonl:7: .*{said}"):
        choose_template(tokenizer(template=jinja)).encode([ROW])


def test_a_system_turn_that_a_template_does_not_take_is_named() -> None:
    (template, special, bos, eos), _ = CASES["gemma"]
    row = Row((Turn("system", "Be short."), *TURNS), "chats.jsonl:9")
    with pytest.raises(PatinaError, match=r"chats\.jsonl:9: .*System role not supported"):
        choose_template(made(template, special, bos, eos)).encode([row])


def test_a_users_own_file_wins_and_a_missing_one_is_named(tmp_path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
                    "{% if add_generation_prompt %}assistant:{% endif %}")  # fmt: skip
    template = choose_template(tokenizer(), str(path))
    (row,) = template.encode([ROW])
    assert template.tokenizer.decode(row.ids[row.trained]) == "Bé.<|im_end|>D d<|im_end|>"
    with pytest.raises(PatinaError, match=r"text\.template: '.*gone\.jinja' is none of auto, instruction"):
        choose_template(tokenizer(), str(tmp_path / "gone.jinja"))


def test_without_a_template_of_its_own_a_tokenizer_gets_ours() -> None:
    assert choose_template(tokenizer(template=None)).name == "instruction"
    assert choose_template(tokenizer()).name == "the tokenizer's own"
    assert choose_template(tokenizer(), "instruction-zh").name == "instruction-zh"


def test_ours_need_an_end_of_text_token() -> None:
    words = tokenizer(template=None, eos=None)
    with pytest.raises(PatinaError, match="has none"):
        choose_template(words)


def test_rows_are_cut_at_the_length_and_counted_and_those_without_an_answer_left_out() -> None:
    template = choose_template(tokenizer())
    short, asked = Row(TURNS[:2], "x:1"), Row((Turn("user", "x" * 300), Turn("assistant", "y")), "x:2")
    long = Row((Turn("user", "A"), Turn("assistant", "y" * 300)), "x:3")
    rows = encode_rows([short, asked, long], template, max_length=64)
    assert rows.cut == (2, len(template.encode([long])[0].ids), 1)
    assert [len(row.ids) for row in rows.encoded][1] == 64
    assert torch.equal(rows.encoded[0].ids, template.encode([short])[0].ids)
    lines = rows.report()
    assert "2 rows are longer than max_length: 64 and are cut there" in lines[1]
    assert lines[1].endswith(f"write max_length: {rows.cut.longest}")
    assert "1 rows are left out" in lines[2]


def test_a_set_with_nothing_to_learn_is_refused() -> None:
    asked = Row((Turn("user", "x" * 300), Turn("assistant", "y")), "x:2")
    with pytest.raises(PatinaError, match="none of its 1 rows has an answer within max_length: 64"):
        encode_rows([asked], choose_template(tokenizer()), max_length=64)
    with pytest.raises(PatinaError, match="none of its 1 rows"):
        encode_rows([Row((Turn("user", "A"),), "x:1")], choose_template(tokenizer()), max_length=64)
