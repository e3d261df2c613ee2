"""Noise, targets and weights against diffusers' own, and draws that depend on nothing but their place."""

import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from patina.errors import PatinaError
from patina.objective import Noised, ddpm, draw, loss_sum

SHAPE = (4, 8, 6)
T = torch.tensor([0, 1, 500, 998, 999])


def scheduler(prediction_type: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, *SHAPE, generator=generator), torch.randn(5, *SHAPE, generator=generator)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_are_those_of_diffusers(prediction_type, batch):
    theirs = scheduler(prediction_type)
    ours = ddpm(theirs)(*batch, T)
    target = batch[1] if prediction_type == "epsilon" else theirs.get_velocity(*batch, T)
    torch.testing.assert_close(ours.x, theirs.add_noise(*batch, T), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.target, target, rtol=1e-6, atol=1e-7)
    assert torch.equal(ours.weight, torch.ones(5))


def test_every_scheduler_of_sd15_is_understood():
    theirs = scheduler("epsilon")
    ours = ddpm(tiny.sd15().scheduler)
    assert ours.timesteps == 1000
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize(("prediction_type", "shift"), [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_weights_are_the_papers(prediction_type, shift, batch):
    theirs = scheduler(prediction_type)
    snr = compute_snr(theirs, T)
    expected = snr.clamp(max=5) / (snr + shift)
    torch.testing.assert_close(ddpm(theirs, min_snr_gamma=5)(*batch, T).weight, expected, rtol=1e-4, atol=1e-8)


def test_a_timestep_without_signal_weighs_a_finite_number(batch):
    zero_snr = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="epsilon")
    weight = ddpm(zero_snr, min_snr_gamma=5)(*batch, T).weight
    assert weight[-1] == 1
    assert weight.isfinite().all()


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(PatinaError, match="'sample'"):
        ddpm(DDPMScheduler(prediction_type="sample"))
    with pytest.raises(PatinaError, match="min_snr_gamma is 0"):
        ddpm(scheduler("epsilon"), min_snr_gamma=0)


def test_a_draw_is_a_function_of_seed_step_and_sample():
    before = torch.get_rng_state()
    noise, t = draw(7, 3, [10, 11, 12], SHAPE, 1000)
    again, t_again = draw(7, 3, [12, 10], SHAPE, 1000)
    assert torch.equal(noise[[2, 0]], again)
    assert torch.equal(t[[2, 0]], t_again)
    for other in (draw(8, 3, [10], SHAPE, 1000), draw(7, 4, [10], SHAPE, 1000), draw(7, 3, [13], SHAPE, 1000)):
        assert not torch.equal(other[0][0], noise[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_normal_and_uniform():
    noise, t = draw(0, 0, range(2000), SHAPE, 1000)
    assert noise.mean().abs() < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert (int(t.min()), int(t.max())) == (pytest.approx(0, abs=5), pytest.approx(999, abs=5))
    assert abs(t.float().mean() - 499.5) < 30  # five standard errors


def test_noise_offset_moves_whole_channels():
    plain, t = draw(1, 2, [3, 4], SHAPE, 1000)
    moved, t_moved = draw(1, 2, [3, 4], SHAPE, 1000, offset=0.1)
    by = moved - plain
    assert torch.equal(t, t_moved)
    torch.testing.assert_close(by, by[..., :1, :1].expand_as(by), rtol=0, atol=1e-6)
    assert by[0, 0, 0, 0] != by[0, 1, 0, 0]


def test_the_loss_is_a_mean_over_a_picture_and_a_sum_over_pictures(batch):
    target, prediction = batch
    noised = Noised(target, T, target, torch.tensor([1.0, 0.5, 0, 2, 1]))
    each = torch.stack([torch.nn.functional.mse_loss(p, q) for p, q in zip(prediction, target, strict=True)])
    torch.testing.assert_close(loss_sum(prediction, noised), (each * noised.weight).sum())
    halves = loss_sum(prediction[:2], Noised(target[:2], T[:2], target[:2], noised.weight[:2]))
    rest = loss_sum(prediction[2:], Noised(target[2:], T[2:], target[2:], noised.weight[2:]))
    torch.testing.assert_close(halves + rest, loss_sum(prediction, noised))
