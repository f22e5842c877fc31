import math

import pytest
import torch

from smdiff.diffusion.noise import SCHEDULES, NoiseDraw, corrupt, draw_step, sample_times
from smdiff.diffusion.objective import Scores, negative_elbo
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models.denoiser import Denoiser
from tests.conftest import k_of, small_dit, soft_mask_from

LOG_LINEAR = SCHEDULES["log-linear"]


def of_logits(logits):
    """A model that predicts logits(masked) (N, V), whatever it sees."""

    def model(ids, masked, feedback=None, *, targets=None, observe=False, weight=None):
        nll = torch.nn.functional.cross_entropy(logits(masked), targets, reduction="none")
        return Scores(nll, None, (nll * weight).sum())

    return model


def test_elbo_terms_and_times_match_reference(golden):
    case = golden("elbo")
    t, x0, mask_id = case["t"], case["x0"], case.info["mask_id"]
    torch.testing.assert_close(sample_times(case["u"]), case["t_antithetic_eps0.001"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sample_times(case["u"], 1e-5), case["t_antithetic_eps1e-05"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sample_times(case["u"], antithetic=False), case["t_iid_eps0.001"], atol=1e-6, rtol=0)
    torch.testing.assert_close(LOG_LINEAR.alpha(t), case["ibm_alpha"], atol=1e-6, rtol=0)
    torch.testing.assert_close(LOG_LINEAR.dalpha(t), torch.full_like(t, case.info["ibm_dalpha"]))
    torch.testing.assert_close(LOG_LINEAR.weight(t), -case["ibm_weight"].abs() * -1, rtol=5e-5, atol=0)
    x_t = corrupt(x0, case["u_mask"] < 1 - LOG_LINEAR.alpha(t)[:, None], mask_id)
    assert torch.equal(x_t, case["xt_from_u_mask"])

    masked = case["xt"] == mask_id
    draw = NoiseDraw(t, masked, two_pass=False)
    logits = case["logits"].clone()
    logits[..., mask_id] = -torch.inf
    loss = negative_elbo(of_logits(lambda where: logits[where]), x0, draw, LOG_LINEAR, mask_id)
    terms = torch.zeros_like(x0, dtype=torch.float32)
    terms[masked] = loss.nll * loss.weight
    for reference in ("nll_terms_mdlm", "nll_terms_ibm"):
        torch.testing.assert_close(terms, case[reference].abs(), rtol=5e-5, atol=1e-6)
    valid = case["attention_mask"].bool()
    nll = float(terms[valid].sum() / valid.sum())
    assert nll == pytest.approx(case.info["token_nll_ibm"], rel=1e-5)
    assert math.exp(nll) == pytest.approx(case.info["metrics_one_batch"]["ppl"], rel=2e-5)


def test_trainer_losses_and_gradients_match_reference(golden, golden_dit):
    case = golden("trainer_language")
    x0, masked = case["x0"], case["x_t"] == case.info["mask_id"]
    valid = case["valid_tokens"].bool()
    for run in case.info["runs"]:
        soft_mask = soft_mask_from(run["raw"], k_of(run)) if run["soft_mask"] else None
        denoiser = Denoiser(golden_dit, case.info["mask_id"], soft_mask)
        draw = NoiseDraw(case["t"], masked, two_pass=run["soft_mask"])

        def of_valid(*inputs, weight=None, model=denoiser, **asked):
            """The reference's mean is over valid tokens."""
            share = valid[masked] / valid.sum()
            return model(*inputs, weight=None if weight is None else weight * share, **asked)

        loss = negative_elbo(of_valid, x0, draw, LOG_LINEAR, case.info["mask_id"])
        terms = torch.zeros(x0.shape)
        terms[masked] = loss.nll * loss.weight
        torch.testing.assert_close(terms, case[f"{run['name']}.nll_terms"], rtol=1e-5, atol=1e-4)
        assert float(loss.total) == pytest.approx(run["loss_token_nll"], rel=1e-5)
        denoiser.zero_grad()
        loss.total.backward()
        gradients = dict(golden_dit.named_parameters())
        torch.testing.assert_close(
            gradients["blocks.0.attn_qkv.weight"].grad,
            case[f"{run['name']}.grad_blocks0_attn_qkv"],
            rtol=1e-3,
            atol=1e-6,
        )
        for name, norm in run["backbone_grad_norms"].items():
            assert float(gradients[name].grad.norm()) == pytest.approx(norm, rel=1e-3)
        if soft_mask is None:
            continue
        pairs = {"raw_scale": "raw_scale", "raw_centre": "raw_centre_neg", "raw_steepness": "raw_steep"}
        if soft_mask.k is None:
            pairs["raw_temperature"] = "raw_temperature"
        for ours, theirs in pairs.items():
            expected = run["grads_transparency"][theirs]
            assert float(getattr(soft_mask, ours).grad) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def bound(log_p: torch.Tensor, schedule: str, rows: int = 4000) -> float:
    """The ELBO in nats a token of a model that always predicts `log_p` (V,), over many draws of t."""
    length, v = 6, log_p.shape[0]
    x0 = torch.multinomial(log_p.exp(), rows * length, replacement=True).view(rows, length)
    draw = draw_step(SCHEDULES[schedule], seed=1, step=2, rows=rows, length=length)
    model = of_logits(lambda masked: log_p.expand(int(masked.sum()), v))
    return float(negative_elbo(model, x0, draw, SCHEDULES[schedule], mask_id=v).total / x0.numel())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bound_of_a_uniform_predictor_is_log_v(schedule):
    assert bound(torch.full((8,), -math.log(8)), schedule) == pytest.approx(math.log(8), rel=0.03)


def test_bound_of_a_perfect_predictor_is_zero():
    log_p = torch.full((8,), -torch.inf)
    log_p[3] = 0.0
    assert bound(log_p, "log-linear") == 0


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_weight_is_the_log_derivative_of_the_masked_share(schedule):
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(slope, schedule.dalpha(t.detach()))
    torch.testing.assert_close(schedule.weight(t.detach()), -slope / (1 - schedule.alpha(t.detach())))
    assert float(schedule.alpha(torch.zeros(()))) == 1


@pytest.mark.parametrize("rows", [1, 2, 7, 512])
def test_antithetic_times_cover_the_range(rows):
    t = sample_times(torch.rand(rows), t_min=0.1, t_max=0.9)
    strata = ((t - 0.1) / 0.8 * rows).floor().clamp(max=rows - 1).long()
    assert sorted(strata.tolist()) == list(range(rows))


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (4, 2), (1, 8)])
def test_noise_does_not_depend_on_how_the_batch_is_spread(ranks, micro_batches):
    def draw(part: slice) -> NoiseDraw:
        return draw_step(LOG_LINEAR, seed=3, step=5, rows=16, length=11, p_two_pass=0.5, part=part)

    whole = draw(slice(None))
    each = 16 // (ranks * micro_batches)
    parts = [draw(slice(i * each, (i + 1) * each)) for i in range(ranks * micro_batches)]
    assert torch.equal(whole.t, torch.cat([p.t for p in parts]))
    assert torch.equal(whole.masked, torch.cat([p.masked for p in parts]))
    assert {p.two_pass for p in parts} == {whole.two_pass}


def test_noise_depends_on_seed_and_step_and_follows_alpha():
    def draw(seed: int, step: int) -> NoiseDraw:
        return draw_step(LOG_LINEAR, seed=seed, step=step, rows=64, length=500, p_two_pass=0.8)

    first = draw(1, 1)
    assert torch.equal(first.masked, draw(1, 1).masked)
    assert not torch.equal(first.masked, draw(1, 2).masked)
    assert not torch.equal(first.masked, draw(2, 1).masked)
    torch.testing.assert_close(first.masked.float().mean(1), 1 - LOG_LINEAR.alpha(first.t), atol=0.1, rtol=0)
    share = sum(draw(1, step).two_pass for step in range(400)) / 400
    assert share == pytest.approx(0.8, abs=0.06)


def test_two_pass_needs_scalars_and_gives_them_gradients():
    x0 = torch.randint(0, 36, (2, 12))
    draw = NoiseDraw(torch.tensor([0.5, 0.9]), torch.rand(2, 12) < 0.7, two_pass=True)
    with pytest.raises(ValueError, match="soft-mask"):
        negative_elbo(Denoiser(small_dit(), 36), x0, draw, LOG_LINEAR, 36)
    soft_mask = SoftMask(k=3, w_s=0.3)
    denoiser = Denoiser(small_dit(), 36, soft_mask)
    negative_elbo(denoiser, x0, draw, LOG_LINEAR, 36).total.backward()
    assert denoiser.nfe == 2
    assert all(float(p.grad.abs()) > 0 for p in soft_mask.parameters())
