"""The objective of the code recipe: noise on responses, at least one mask a row, 1/t times a mean cross-entropy."""

import itertools

import pytest
import torch

from smdiff.diffusion.noise import NoiseDraw, draw_step, mask_some
from smdiff.diffusion.objective import mean_cross_entropy, objective
from smdiff.models.denoiser import Denoiser
from tests.conftest import k_of, small_dit, soft_mask_from

CODE = objective("code", (0.2, 0.8))


@pytest.mark.parametrize("run", range(6))
def test_trainer_coding(golden, dream, run):
    """Loss, second pass, and gradients of the network and the scalars are the reference's."""
    case = golden("trainer_coding")
    info = case.info["runs"][run]
    group = info["name"].split(".")[1]
    backbone = dream("dream_weights").backbone
    soft_mask = soft_mask_from(info["raw"], k_of(info)) if info["softmasking"] else None
    denoiser = Denoiser(backbone, case.info["mask_id"], soft_mask, shift=True, forbidden=())
    x0, masked = case["x0"], case[f"run.{group}.mask_idx"]
    draw = NoiseDraw(torch.full((len(x0),), info["t"]), masked, two_pass=info["softmasking"])
    loss = mean_cross_entropy(denoiser, x0, draw, denoiser.mask_id, shift=True).total
    assert float(loss) == pytest.approx(info["loss"], rel=1e-5)
    loss.backward()
    gradients = dict(backbone.named_parameters())
    torch.testing.assert_close(
        gradients["model.layers.0.self_attn.q_proj.weight"].grad,
        case[f"{info['name']}.grad_q_proj_layer0_weight"],
        rtol=1e-3,
        atol=1e-5,
    )
    if not info["softmasking"]:  # transformers' embedding gives its padding row no gradient
        gradients["model.embed_tokens.weight"].grad[backbone.config.pad_token_id] = 0
    norms = {
        "model.layers.0.self_attn.q_proj.bias": "grad_norm_q_proj_layer0_bias",
        "model.embed_tokens.weight": "grad_norm_embed_tokens",
        "lm_head.weight": "grad_norm_lm_head",
    }
    for name, key in norms.items():
        assert float(gradients[name].grad.norm()) == pytest.approx(info[key], rel=1e-3)
    if soft_mask is not None:
        pairs = {"raw_scale": "raw_scale", "raw_centre": "raw_centre_neg", "raw_steepness": "raw_steep"}
        pairs |= {} if soft_mask.k else {"raw_temperature": "raw_temperature"}
        for ours, theirs in pairs.items():
            expected = info["grads_transparency"][theirs]
            assert float(getattr(soft_mask, ours).grad) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("run", range(4))
def test_collator_coding(golden, run):
    """The reference's draws, injected: its masked share, its masks, and its repair where that is not at fault.

    Its repair takes one position for all rows that need one, from the first such row's prompt on (TRAPS 23): only that
    row is comparable, and only where the position is not padding.
    """
    case = golden("collator_coding")
    info, pre = case.info["runs"][run], f"run.{run}"
    ids, prompts = case[f"{pre}.labels"].clone(), case[f"{pre}.prompt_lengths"]
    t = info["t"] if info["t"] is not None else (info["max"] - info["min"]) * info["uniform_t"] + info["min"]
    t = max(t, 1e-3)
    share = 1 - CODE.noise.alpha(torch.tensor([t]))
    assert float(share) == pytest.approx(info["p_mask"], abs=1e-6)
    assert 1 / t == pytest.approx(info["dsigma"], rel=1e-5)
    maskable = torch.arange(ids.shape[1]) >= prompts[:, None]
    u, theirs = case[f"{pre}.uniform_mask"], case[f"{pre}.mask_idx"]
    natural = ((u < share) & maskable).any(1)
    assert int((~natural).sum()) == info["rows_without_natural_mask"]
    first = next(iter((~natural).nonzero()[:, 0].tolist()), None)
    pick = torch.zeros(len(ids))
    if first is not None:
        chosen = int(theirs[first].nonzero()[0])
        pick[first] = (chosen - int(prompts[first]) + 0.5) / int(maskable[first].sum())
    ours, _ = mask_some(u, share.expand(len(ids)), maskable, pick)
    comparable = natural.clone()
    if first is not None:
        comparable[first] = True
    assert torch.equal(ours[comparable], theirs[comparable])
    assert (ours.any(1)).all()
    assert not (ours & ~maskable).any()
    noised = case[f"{pre}.input_ids"]
    assert torch.equal(noised[comparable] == case.info["mask_id"], ours[comparable])


def test_the_repair_leaves_the_expected_sum_as_it_is():
    """Over all masks of 4 tokens: sum of factor * terms under the repaired law = sum of terms under the plain law."""
    n, p = 4, 0.15
    terms = torch.tensor([1.0, 2.5, -0.7, 4.0], dtype=torch.float64)
    plain = p * float(terms.sum())
    expected = 0.0
    for bits in itertools.product([False, True], repeat=n):
        chance = p ** sum(bits) * (1 - p) ** (n - sum(bits))
        u = torch.where(torch.tensor([bits]), 0.0, 0.99)
        picks = (torch.arange(n) + 0.5) / n if not any(bits) else torch.tensor([0.5])
        for pick in picks:
            ones = torch.ones(1, n, dtype=torch.bool)
            masked, factor = mask_some(u, torch.tensor([p], dtype=torch.float64), ones, pick[None])
            expected += chance / len(picks) * float(factor * terms[masked[0]].sum())
    assert expected == pytest.approx(plain, rel=1e-9)


def test_prompts_are_never_masked_and_every_row_has_a_mask():
    maskable = torch.arange(40) >= torch.tensor([39, 10, 0, 25])[:, None]
    counts = torch.zeros(4)
    for step in range(300):
        draw = draw_step(
            CODE.noise, seed=1, step=step, rows=4, length=64, t_min=0.2, t_max=0.8, maskable=maskable, one_time=True,
            antithetic=False, p_two_pass=0.5,
        )  # fmt: skip
        assert draw.t.unique().numel() == 1
        assert 0.2 <= float(draw.t[0]) <= 0.8
        assert not (draw.masked & ~maskable).any()
        assert draw.masked.any(1).all()
        counts += draw.masked.sum(1) / maskable.sum(1)
    torch.testing.assert_close(counts[1:] / 300, torch.full((3,), 0.5), atol=0.04, rtol=0)


def test_time_masks_and_passes_are_independent():
    """The reference's share one uniform (TRAPS 23)."""
    maskable = torch.ones(1, 60, dtype=torch.bool)
    draws = [
        draw_step(CODE.noise, seed=2, step=s, rows=1, length=60, t_min=0.2, t_max=0.8, p_two_pass=0.5,
                  maskable=maskable, one_time=True, antithetic=False)
        for s in range(1500)
    ]  # fmt: skip
    t = torch.stack([d.t[0] for d in draws])
    two = torch.tensor([float(d.two_pass) for d in draws])
    first = torch.tensor([float(d.masked[0, 0]) for d in draws])
    assert abs(float(torch.corrcoef(torch.stack([t, two]))[0, 1])) < 0.08
    # Given t, the first token is masked with probability t: its residual says nothing about the passes.
    assert abs(float(torch.corrcoef(torch.stack([first - t, two]))[0, 1])) < 0.08
    assert float((first - t).mean()) == pytest.approx(0, abs=0.04)


def test_a_mean_over_masked_tokens_whatever_their_number():
    denoiser = Denoiser(small_dit(), 36, shift=True)
    x0 = torch.randint(0, 36, (2, 12))
    masked = torch.zeros(2, 12, dtype=torch.bool)
    masked[0, [0, 3]] = masked[1, 5] = True
    draw = NoiseDraw(torch.full((2,), 0.4), masked, two_pass=False)
    loss = mean_cross_entropy(denoiser, x0, draw, 36, shift=True)
    assert float(loss.weight[0]) == 0  # nothing predicts the first position
    assert float(loss.total) == pytest.approx(float(loss.nll[1:].mean()) / 0.4, rel=1e-6)
    whole = mean_cross_entropy(denoiser, x0, draw, 36, shift=False)
    assert float(whole.total) == pytest.approx(float(whole.nll.mean()) / 0.4, rel=1e-6)
