"""CoCa's decoder with a cache writes the very ids that reading the whole prefix anew for each token gives."""

import open_clip
import pytest
import torch
from tiny_captioner import CONTEXT, END, MODEL
from torch import Tensor

from patina.caption.decode import check_decodable, greedy
from patina.errors import PatinaError

START, LENGTH = 49406, 40


def deep_coca(**text: object) -> open_clip.CoCa:
    """Three layers a tower, several heads, layer scales: what the tiny captioner of one layer does not have."""
    torch.manual_seed(0)
    size = {"context_length": LENGTH, "width": 32, "heads": 4, "layers": 3, "ls_init_value": 0.5}
    model = open_clip.CoCa(
        embed_dim=32,
        vision_cfg={**MODEL["vision_cfg"], "width": 32, "layers": 2},
        text_cfg={**MODEL["text_cfg"], **size, **text},
        multimodal_cfg={**MODEL["multimodal_cfg"], **size},
    ).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data = torch.randn(weight.shape) * (1 if "embedding" in name else weight.shape[-1] ** -0.5)
    model.text_decoder.text_projection.data[:, END] *= 2
    return model


@torch.no_grad()
def naive(model: open_clip.CoCa, images: Tensor, limit: int) -> Tensor:
    """The same choice of tokens with open_clip's own forward over the whole prefix."""
    ids = torch.full((len(images), 1), START)
    ended = torch.zeros(len(images), dtype=torch.bool)
    while ids.shape[1] < limit and not ended.all():
        logits = model(images, ids, output_labels=False)["logits"][:, -1].clone()
        logits[:, [0, START]] = -torch.inf
        if ids.shape[1] < 5:
            logits[:, END] = -torch.inf
        chosen = logits.argmax(-1).masked_fill(ended, 0)
        ended |= chosen == END
        ids = torch.cat((ids, chosen[:, None]), 1)
    return ids


def test_the_cache_changes_no_token():
    model = deep_coca()
    images = torch.randn(6, 3, 32, 32)
    embedded = model(images)["image_embs"]
    written = greedy(model, embedded, START, END, LENGTH)
    assert torch.equal(written, naive(model, images, LENGTH))
    # The comparison means something: rows differ, some end early, and one goes on to the limit.
    assert len({tuple(row) for row in written.tolist()}) == 6
    assert written.shape[1] > CONTEXT
    assert sum(END in row for row in written.tolist()) > 0


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"embed_cls": False}])
def test_a_text_tower_of_another_kind_is_refused(text):
    with pytest.raises(PatinaError, match="not decoded here"):
        check_decodable(deep_coca(**text), "CoCa x")
