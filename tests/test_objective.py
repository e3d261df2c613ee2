"""Noise, targets and weights against diffusers' own, and draws that depend on nothing but their place."""

import pytest
import tiny
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers.training_utils import compute_snr

from patina.errors import PatinaError
from patina.objective import Noised, ddpm, draw, loss_sum, with_terminal_snr

SHAPE = (4, 8, 6)
T = torch.tensor([0, 1, 500, 998, 999])


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler(prediction_type: str, **other) -> DDPMScheduler:
    return DDPMScheduler(**BETAS, prediction_type=prediction_type, **other)


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


def rescaled() -> torch.Tensor:
    """Lin et al.'s algorithm 1, in float64 from the betas."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    root = alphas.sqrt()
    shifted = root - root[-1]
    return (shifted * root[0] / shifted[0]) ** 2


def test_zero_terminal_snr_is_the_papers_and_that_of_diffusers():
    theirs = scheduler("v_prediction", rescale_betas_zero_snr=True)
    for base in (theirs, with_terminal_snr(scheduler("v_prediction"), True)):
        ours = ddpm(base).alphas_cumprod
        assert ours[-1] == 0
        assert torch.equal(ours, theirs.alphas_cumprod)
        torch.testing.assert_close(ours.double(), rescaled(), rtol=1e-3, atol=1e-6)  # diffusers' way is fp32, by betas


def test_a_last_timestep_that_diffusers_keeps_above_zero_is_zero_in_training():
    euler = EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert euler.alphas_cumprod[-1] > 0
    ours = ddpm(euler).alphas_cumprod
    assert ours[-1] == 0
    torch.testing.assert_close(ours.double(), rescaled(), rtol=1e-3, atol=1e-6)
    assert euler.alphas_cumprod[-1] > 0


def test_the_last_step_of_zero_terminal_snr_is_noise_alone_and_is_learned(batch):
    x0, noise = batch
    ours = ddpm(scheduler("v_prediction", rescale_betas_zero_snr=True), min_snr_gamma=5)(*batch, T)
    assert torch.equal(ours.x[-1], noise[-1])
    assert torch.equal(ours.target[-1], -x0[-1])
    snr = (rescaled() / (1 - rescaled()))[T].float()
    assert snr[-1] == 0
    torch.testing.assert_close(ours.weight, (snr + 1).clamp(max=5) / (snr + 1), rtol=1e-4, atol=1e-8)
    assert ours.weight[-1] == 1
    assert ours.weight[0] < 0.01


def test_the_config_decides_over_the_bases_scheduler_and_previews_follow():
    pndm = PNDMScheduler(**BETAS, prediction_type="v_prediction", skip_prk_steps=True, steps_offset=1)
    assert with_terminal_snr(pndm, None) is pndm
    assert with_terminal_snr(pndm, False) is pndm
    zero = with_terminal_snr(pndm, True)
    zero.set_timesteps(10)
    assert int(zero.timesteps[0]) == 999
    assert zero.alphas_cumprod[-1] == 0
    assert with_terminal_snr(zero, True) is zero
    deaf = PNDMScheduler.from_config(zero.config)  # knows no such setting
    assert deaf.alphas_cumprod[-1] > 0
    assert with_terminal_snr(deaf, None).alphas_cumprod[-1] == 0
    back = with_terminal_snr(zero, False)
    assert torch.equal(back.alphas_cumprod, pndm.alphas_cumprod)


def test_a_timestep_without_signal_cannot_teach_epsilon():
    zero_snr = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(PatinaError, match=r"needs v-prediction: write noise\.zero_terminal_snr: false"):
        ddpm(zero_snr)
    assert ddpm(with_terminal_snr(zero_snr, False)).alphas_cumprod[-1] > 0


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
