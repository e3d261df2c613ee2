"""Packing: rows laid end to end teach exactly what they teach alone, in as few long rows as they fit into."""

from itertools import islice

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from patina.tasks.text import TextTask
from patina.text.abilities import look
from patina.text.head import next_token
from patina.text.pack import Stream, best_fit
from patina.text.template import Encoded
from tests.tiny_text import llama, qwen2

LENGTHS = (7, 19, 3, 12, 26, 5, 9, 14, 2, 30)
MODELS = {"llama": llama, "qwen2": qwen2}


def rows(lengths=LENGTHS) -> list[Encoded]:
    """Rows whose last part is trained, unevenly."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for length in lengths:
        trained = torch.arange(length) >= max(1, length // 3)
        found.append(Encoded(torch.randint(250, (length,), generator=generator, dtype=torch.int32), trained))
    return found


def stream(packed: int | None = None, batch_size: int = 2, seed: int = 0, lengths=LENGTHS) -> Stream:
    return Stream(rows(lengths), batch_size, seed, packed, pad=256)


def alone(model, row: Encoded) -> torch.Tensor:
    """The summed loss of one row in plain transformers: labels shifted by hand."""
    ids = row.ids.long()[None]
    logits = model(input_ids=ids).logits[0, :-1].float()
    return F.cross_entropy(logits[row.trained[1:]], ids[0, 1:][row.trained[1:]], reduction="sum")


def gradient(model, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("packed", [32, 64, None], ids=["32", "64", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_batches_teach_what_their_rows_teach_alone(name, packed) -> None:
    model, set_of = MODELS[name](), stream(packed)
    task = TextTask(model)
    batches = list(islice(set_of.batches(0), set_of.per_epoch()))
    together = sum(task(batch) for batch in batches)
    apart = sum(alone(model, row) for row in set_of.rows)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=0)
    one, other = gradient(model, together), gradient(model, sum(alone(model, row) for row in set_of.rows))
    assert (one - other).norm() < 1e-5 * other.norm()
    assert sum(task.count(batch) for batch in batches) == sum(int(row.trained.sum()) for row in set_of.rows)


def test_a_packed_batch_has_no_mask_for_with_one_its_rows_would_see_each_other() -> None:
    model, set_of = llama(), stream(64)
    batch = next(set_of.batches(0))
    assert "attention_mask" not in batch
    spoilt = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    right, wrong = (TextTask(model)(one).item() for one in (batch, spoilt))
    assert abs(wrong / right - 1) > 1e-3


@pytest.mark.parametrize("packed", [32, None], ids=["packed", "padded"])
def test_an_epoch_shows_every_row_once_in_an_order_of_its_own(packed) -> None:
    set_of = stream(packed)
    epochs = [list(islice(set_of.batches(n * set_of.per_epoch()), set_of.per_epoch())) for n in (0, 1)]
    shown = [[place for batch in epoch for place in batch["places"]] for epoch in epochs]
    assert sorted(shown[0]) == sorted(shown[1]) == list(range(len(LENGTHS)))
    assert shown[0] != shown[1]
    assert [batch["epoch"] for epoch in epochs for batch in epoch] == [0] * len(epochs[0]) + [1] * len(epochs[1])
    assert sum(batch["tokens"] for batch in epochs[0]) == sum(LENGTHS)


@pytest.mark.parametrize("packed", [32, None], ids=["packed", "padded"])
def test_the_stream_is_a_function_of_place(packed) -> None:
    whole = list(islice(stream(packed).batches(0), 12))
    for start in (1, 5, 11):
        late = next(stream(packed).batches(start))
        assert late["places"] == whole[start]["places"]
        assert torch.equal(late["input_ids"], whole[start]["input_ids"])
    assert next(stream(packed, seed=1).batches(0))["places"] != whole[0]["places"]


def test_positions_begin_anew_with_every_row_and_with_padding() -> None:
    batch = stream(40, batch_size=9, lengths=(5, 4, 38)).batch([[0, 1], [2]], epoch=0)
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, *range(29)]
    assert batch["input_ids"][0, 9:].tolist() == [256] * 29
    assert batch["tokens"] == 47


def test_rows_of_one_length_share_a_padded_batch() -> None:
    set_of = stream(None, batch_size=2, lengths=(40, 4) * 20)
    batches = list(islice(set_of.batches(0), set_of.per_epoch()))
    assert all(batch["tokens"] == batch["input_ids"].numel() for batch in batches)


def test_best_fit_fills_bins_by_hand() -> None:
    assert best_fit(range(5), (7, 5, 3, 4, 1), 10) == [[0, 2], [1, 3, 4]]
    assert best_fit([1, 0], (10, 10), 10) == [[1], [0]]


def test_how_many_bins_there_are_depends_on_the_lengths_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 200, (500,), generator=generator).tolist()
    bins = [best_fit(torch.randperm(500, generator=generator).tolist(), lengths, 256) for _ in range(5)]
    assert len({len(found) for found in bins}) == 1
    assert all(sum(lengths[number] for number in members) <= 256 for members in bins[0])
    assert len(bins[0]) <= 1.02 * sum(lengths) / 256 + 1


def test_a_loss_in_chunks_is_the_loss_in_one_piece() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 16, generator=generator)
    hidden = torch.randn(23, 16, generator=generator, requires_grad=True)
    targets = torch.randint(50, (23,), generator=generator)
    said = next_token(lambda h: h @ weight.T, hidden, targets, chunk=4)
    (found,) = torch.autograd.grad(said.loss, hidden)
    whole = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (wanted,) = torch.autograd.grad(whole, hidden)
    torch.testing.assert_close(said.loss, whole)
    torch.testing.assert_close(found, wanted)
    assert int(said.right) == int(((hidden @ weight.T).argmax(-1) == targets).sum())


def test_the_logits_of_a_chunk_are_all_that_is_kept() -> None:
    """The largest tensor that autograd saves on the way has the size of a chunk's hidden states, not of logits."""
    hidden = torch.randn(64, 16, requires_grad=True)
    head, saved = torch.nn.Linear(16, 5000), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        next_token(head, hidden, torch.zeros(64, dtype=torch.int64), chunk=8)
    assert max(saved, default=0) <= 64 * 16


def test_what_a_model_can_do_is_tried() -> None:
    assert look(llama()) == (True, True)
    shape = dict(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    assert look(GPT2LMHeadModel(GPT2Config(**shape)).eval()) == (True, True)


def test_a_model_that_sees_across_rows_cannot_pack() -> None:
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.2)
    assert not look(MambaForCausalLM(config).eval()).packs
