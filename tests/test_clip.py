"""Captions are read as A1111 reads prompts: its algorithm, told again here in its own steps, on real CLIP classes."""

import logging
from random import Random

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from patina import clip
from patina.clip import PLAIN, Reading, count_cut
from patina.emphasis import weighed
from patina.errors import PatinaError
from patina.tokenizer import clip_tokenizer, count_tokens

WIDTH, LAYERS = 16, 3
CONFIG = CLIPTextConfig(
    hidden_size=WIDTH,
    intermediate_size=32,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    projection_dim=WIDTH,
    bos_token_id=49406,
    eos_token_id=49407,
    pad_token_id=49407,
)
COMMA = 267

SHORT = "a red house by the sea, oil painting"
WORDS = ["house", "tree", "road", "boat", "cloud", "bird", "stone", "river", "hill", "door"]
LONG = " ".join(WORDS[number % 10] for number in range(130))
NEAR = " ".join([*WORDS * 6, "red,", *WORDS * 3])
"""A comma at place 61: within the last twenty of the first chunk."""
FAR = " ".join([*WORDS * 5, "red,", *WORDS * 4])
"""The last comma at place 51: too far from the first chunk's end."""
ON = " ".join([*WORDS * 6, "red,", *WORDS, *WORDS[:3], ",", *WORDS * 2])
"""A comma is the 76th token, and another is near."""
FULL = " ".join([*WORDS * 7, *WORDS[:5]])
"""75 tokens."""
CAPTIONS = ("", SHORT, FULL, LONG, NEAR, FAR, ON)


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


@pytest.fixture(scope="module")
def encoder() -> CLIPTextModel:
    return _built(CLIPTextModel)


@pytest.fixture(scope="module")
def projected() -> CLIPTextModelWithProjection:
    return _built(CLIPTextModelWithProjection)


def _built(kind):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = kind(CONFIG).eval()
        for name, weight in model.named_parameters():
            if "final_layer_norm" in name:  # at 1 and 0 as built, a norm that is left out hardly shows
                torch.nn.init.normal_(weight, mean=0.5)
    return model


def hidden_states(tokenizer, encoder, captions, reading) -> torch.Tensor:
    return clip.hidden_states(encoder, clip.read(tokenizer, captions, reading), reading)


def penultimate(tokenizer, encoder, captions, reading):
    return clip.penultimate(encoder, clip.read(tokenizer, captions, reading), reading)


class Prompt:
    """A1111's `tokenize_line`: tokens are taken one by one, and a full chunk may give its end back."""

    def __init__(self, tokenizer, parts):
        self.chunks, self.tokens, self.weights, self.last_comma = [], [], [], -1
        for text, weight in parts:
            for token in tokenizer(text, add_special_tokens=False, verbose=False).input_ids:
                self.take(token, weight)
        if self.tokens or not self.chunks:
            self.close()

    def take(self, token, weight):
        if token == COMMA:
            self.last_comma = len(self.tokens)
        elif len(self.tokens) == 75 and self.last_comma != -1 and 75 - self.last_comma <= 20:
            cut = self.last_comma + 1
            moved = self.tokens[cut:], self.weights[cut:]
            self.tokens, self.weights = self.tokens[:cut], self.weights[:cut]
            self.close()
            self.tokens, self.weights = moved
        if len(self.tokens) == 75:
            self.close()
        self.tokens.append(token)
        self.weights.append(weight)

    def close(self):
        blank = 75 - len(self.tokens)
        self.chunks.append(([49406, *self.tokens, *[49407] * (blank + 1)], [1.0, *self.weights, *[1.0] * (blank + 1)]))
        self.tokens, self.weights, self.last_comma = [], [], -1


@torch.no_grad()
def webui(tokenizer, run, captions, parse=lambda text: [(text, 1.0)], pad=49407) -> torch.Tensor:
    """One prompt at a time, one chunk at a time; what a short prompt lacks of the longest is empty chunks."""
    prompts = [Prompt(tokenizer, parse(caption)).chunks for caption in captions]
    most = max(map(len, prompts))
    rows = []
    for chunks in prompts:
        chunks = chunks + [([49406] + [49407] * 76, [1.0] * 77)] * (most - len(chunks))
        said = []
        for tokens, weights in chunks:
            first = tokens.index(49407)
            z = run(torch.tensor([tokens[: first + 1] + [pad] * (76 - first)]))
            mean = z.mean()
            z = z * torch.tensor(weights)[None, :, None]
            said.append(z * (mean / z.mean()))
        rows.append(torch.hstack(said))
    return torch.cat(rows)


def last_normed(encoder):
    return lambda ids: encoder(ids).last_hidden_state


def test_a_caption_of_one_chunk_is_read_bit_for_bit_as_the_base_was_trained(tokenizer, encoder):
    captions = [SHORT, "", FULL, LONG]  # the last is cut
    tokens = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(tokens.input_ids).last_hidden_state
        assert torch.equal(hidden_states(tokenizer, encoder, captions, PLAIN), expected)


@pytest.mark.parametrize("captions", [[caption] for caption in CAPTIONS] + [list(CAPTIONS)])
def test_long_captions_are_read_in_the_webuis_chunks(tokenizer, encoder, captions):
    ours = hidden_states(tokenizer, encoder, captions, Reading(max_tokens=225))
    theirs = webui(tokenizer, last_normed(encoder), captions)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_each_case_of_breaking_a_chunk_is_met(tokenizer):
    lengths = {}
    for caption in (SHORT, FULL, LONG, NEAR, FAR, ON):
        chunks = Prompt(tokenizer, [(caption, 1.0)]).chunks
        lengths[caption] = [tokens.index(49407) - 1 for tokens, _ in chunks]
    assert lengths == {SHORT: [9], FULL: [75], LONG: [75, 55], NEAR: [62, 30], FAR: [75, 17], ON: [75, 21]}


def test_what_does_not_fit_is_cut_and_counted(tokenizer, encoder):
    endless = f"{LONG}, {LONG}, {LONG}"
    for max_tokens, cut in ((75, 5), (150, 1), (225, 1)):
        reading = Reading(max_tokens=max_tokens)
        assert count_cut(tokenizer, [*CAPTIONS, endless], reading) == cut
        states = hidden_states(tokenizer, encoder, [endless], reading)
        assert states.shape == (1, max_tokens // 75 * 77, WIDTH)
    # nothing may follow the last chunk, so that it is filled, though there is a comma near its end
    filled = hidden_states(tokenizer, encoder, [" ".join(WORDS * 7 + WORDS[:5])], PLAIN)
    tail = " ".join(WORDS * 7 + [*WORDS[:5], "more", "and", "more"])
    assert torch.equal(hidden_states(tokenizer, encoder, [tail], PLAIN), filled)
    ids = tokenizer(NEAR, add_special_tokens=False).input_ids[:75]
    with torch.no_grad():
        expected = encoder(torch.tensor([[49406, *ids, 49407]])).last_hidden_state
    torch.testing.assert_close(hidden_states(tokenizer, encoder, [NEAR], PLAIN), expected)


def test_the_vocabulary_is_the_one_that_open_clip_makes_of_the_same_file(tokenizer):
    theirs = SimpleTokenizer()
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    assert tokenizer.get_vocab() == {marks.get(piece, piece): index for piece, index in theirs.encoder.items()}
    text = "A naïve façade, 3 robots' rockets 🚀 & 霓虹灯!"  # lower-cased and split as theirs
    assert tokenizer(text, add_special_tokens=False).input_ids == theirs.encode(text)


def test_blanks_are_what_the_tokenizer_pads_with(encoder):
    """SD2 and SDXL's second encoder pad with `!`."""
    tokenizer = clip_tokenizer()
    tokenizer.pad_token = "!"
    ours = hidden_states(tokenizer, encoder, [SHORT, LONG], Reading(max_tokens=150))
    theirs = webui(tokenizer, last_normed(encoder), [SHORT, LONG], pad=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_clip_skip_takes_the_layer_from_the_end_and_then_the_final_norm(tokenizer, encoder, skip):
    """Against an encoder that ends skip - 1 layers earlier."""
    shorter = CLIPTextModel(CLIPTextConfig(**CONFIG.to_dict() | {"num_hidden_layers": LAYERS + 1 - skip})).eval()
    kept = shorter.state_dict().keys()
    shorter.load_state_dict({name: weight for name, weight in encoder.state_dict().items() if name in kept})
    ours = hidden_states(tokenizer, encoder, [SHORT, LONG], Reading(skip, 150))
    torch.testing.assert_close(ours, webui(tokenizer, last_normed(shorter), [SHORT, LONG]), rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_not_there_is_named(tokenizer, encoder):
    with pytest.raises(PatinaError, match="clip_skip: 4, but the text encoder has 3 layers"):
        hidden_states(tokenizer, encoder, [SHORT], Reading(4))


def test_sdxl_hears_the_last_layer_but_one_and_pools_the_first_chunk(tokenizer, encoder, projected):
    captions = [SHORT, LONG]
    for skip in (1, 2):
        states, pooled = penultimate(tokenizer, projected, captions, Reading(skip, 150))
        theirs = webui(
            tokenizer, lambda ids: projected(ids, output_hidden_states=True).hidden_states[LAYERS - 1], captions
        )
        torch.testing.assert_close(states, theirs, rtol=1e-5, atol=1e-6)
        first = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        torch.testing.assert_close(pooled, projected(first.input_ids).text_embeds)
    assert penultimate(tokenizer, encoder, captions, PLAIN)[1] is None
    with pytest.raises(PatinaError, match="clip_skip: 3, but bases of this kind always listen"):
        penultimate(tokenizer, projected, captions, Reading(3))


def test_gradients_flow(tokenizer, encoder):
    hidden_states(tokenizer, encoder, [LONG], Reading(2, 150)).sum().backward()
    layers = [encoder.get_submodule(f"encoder.layers.{number}.mlp.fc1").weight.grad for number in range(LAYERS)]
    encoder.zero_grad()
    assert layers[1].abs().sum() > 0
    assert layers[2] is None  # skipped


# --- weights

NOTATION = [
    ("normal text", [("normal text", 1)]),
    ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    ("unbalanced) [twice", [("unbalanced) ", 1), ("twice", 1 / 1.1)]),
    (r"\(literal\] and \\", [(r"(literal] and " + "\\", 1)]),
    (r"mystyle \(artist\), (sea:0.5)", [("mystyle (artist), ", 1), ("sea", 0.5)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            *[("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1)],
            *[("sky", 1.4641), (".", 1.1)],
        ],
    ),
    ("(spaced : 1.5 )", [("spaced ", 1.5)]),
    ("time 10:30) (a:b) (c:1.2.3)", [("time 10:30) ", 1), ("a:b", 1.1), (" ", 1), ("c:1.2.3", 1.1)]),
    ("", [("", 1)]),
    ("()", [("", 1)]),
]
"""A1111's own examples, and what people write besides."""


@pytest.mark.parametrize(("text", "parts"), NOTATION, ids=[text for text, _ in NOTATION])
def test_brackets_weigh_words_as_in_a1111(text, parts):
    ours = weighed(text)
    assert [word for word, _ in ours] == [word for word, _ in parts]
    assert [weight for _, weight in ours] == pytest.approx([weight for _, weight in parts])


def test_weighed_tokens_are_scaled_and_the_mean_is_put_back(tokenizer, encoder):
    captions = ["a (red:1.5) house, [[sea]]", f"({LONG}:0.5), (boat)", SHORT]

    def parse(text):
        return {
            captions[0]: [("a ", 1.0), ("red", 1.5), (" house, ", 1.0), ("sea", 1 / 1.21)],
            captions[1]: [(LONG, 0.5), (", ", 1.0), ("boat", 1.1)],
            captions[2]: [(SHORT, 1.0)],
        }[text]

    ours = hidden_states(tokenizer, encoder, captions, Reading(max_tokens=150, weights=True))
    torch.testing.assert_close(ours, webui(tokenizer, last_normed(encoder), captions, parse), rtol=1e-4, atol=1e-5)
    plain = hidden_states(tokenizer, encoder, captions, Reading(max_tokens=150))
    assert torch.equal(ours[2], plain[2])  # no weights, and neighbours that have some
    assert not torch.allclose(ours[0], plain[0], atol=1e-2)


def test_brackets_are_text_unless_weights_are_wanted(tokenizer, encoder):
    caption = r"a (red:1.5) house \(old\)"
    tokens = tokenizer([caption], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(
            hidden_states(tokenizer, encoder, [caption], PLAIN), encoder(tokens.input_ids).last_hidden_state
        )


def test_tokens_are_counted_as_transformers_makes_them(tokenizer):
    pieces = ["A", "b", "house's", " ", "  ", "\n\t", "she'll", "123", ",(", "\u200b", "\u00a0", "İ", "e\u0301", "ß"]
    pieces += ["ﬁ", "Ⅷ", "क़", "猫", "🐈", "👨\u200d👩\u200d👧"]
    pieces += ["<|endoftext|>", "<|startoftext|>", "<|STARTOFTEXT|>", "\0"]
    random = Random(0)
    texts = ["", LONG, *("".join(random.choices(pieces, k=random.randrange(25))) for _ in range(500))]
    made = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    assert count_tokens(texts) == [len(ids) for ids in made]


def test_long_captions_are_no_cause_for_warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert count_cut(clip_tokenizer(), [LONG], PLAIN) == 1  # a tokenizer of its own: each warns only once
    assert not caplog.records
