import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smdiff.diffusion.prediction import FORBIDDEN, statistics, top_k
from smdiff.diffusion.soft_mask import SoftMask, progress_scale
from smdiff.models.denoiser import Denoiser
from tests.conftest import k_of, small_dit, soft_mask_from


def test_language_head_matches_reference(golden):
    case = golden("softmask_language")
    ids, table = case["ids"], case["emb"]
    masked = ids == case.info["mask_id"]
    for run in case.info["runs"]:
        name, k = run["name"], k_of(run)
        soft_mask = soft_mask_from(run["raw"], k)
        for ours, key in ((soft_mask.w_s, "scale"), (soft_mask.w_a, "steepness"), (soft_mask.w_b, "centre")):
            assert abs(float(ours.detach()) - run["effective"][key]) < 1e-6
        feedback = soft_mask.observe(case[run["feed"]][masked])
        blended = soft_mask.embed(ids, masked, feedback, table).detach()
        torch.testing.assert_close(blended, case[f"{name}.blended"], atol=2e-6, rtol=0)
        if k is None:
            continue
        neg_entropy = case[f"{name}.neg_entropy"][masked]
        torch.testing.assert_close(feedback.neg_entropy, neg_entropy, atol=2e-6, rtol=0)
        strength = soft_mask.strength(feedback.neg_entropy).detach()
        torch.testing.assert_close(strength, case[f"{name}.lambda"][masked], atol=1e-6, rtol=0)
        assert torch.equal(feedback.indices, case[f"{name}.indices"][masked][:, 1:])
        weights = torch.cat([1 - strength[:, None], strength[:, None] * feedback.logits.softmax(-1)], 1)
        torch.testing.assert_close(weights, case[f"{name}.weights"][masked], atol=1e-6, rtol=0)


def test_coding_head_and_schedules_match_reference(golden):
    case = golden("softmask_coding")
    ids, table, mask_id = case["ids"], case["emb"], case.info["mask_id"]
    masked = ids == mask_id
    for run in case.info["head_runs"] + case.info["util_runs"]:
        k = k_of(run)
        e = run.get("effective") or {**run, "steepness": run["steep"], "temperature": run["temp"]}
        soft_mask = SoftMask(k, e["scale"], e["steepness"], e["centre"], e["temperature"])
        schedule = {"none": "none", "linear": "linear", "stepwise": "step"}[run.get("schedule", "none")]
        scale = progress_scale(schedule, torch.tensor(run.get("t", 1.0)))
        blended = soft_mask.embed(ids, masked, soft_mask.observe(case["logits"][masked]), table, scale).detach()
        torch.testing.assert_close(blended, case[f"{run['name']}.blended"], atol=2e-6, rtol=0)


def random_logits(n: int, v: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * 3


def embedded(soft_mask: SoftMask, logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The inputs (N, D) of N masked positions, the mask being the last row of `table`."""
    ids = torch.full((1, len(logits)), len(table) - 1)
    return soft_mask.embed(ids, torch.ones_like(ids, dtype=torch.bool), soft_mask.observe(logits), table)[0]


def test_sparse_equals_dense():
    table, logits = random_logits(50, 8, 1), random_logits(20, 50)
    soft_mask = SoftMask(k=4, w_s=0.8, w_a=1.0, w_b=-2.0)
    p = logits.softmax(-1)
    strength = soft_mask.strength((p * p.log()).sum(-1))[:, None]
    kept = torch.zeros_like(p).scatter(1, p.topk(4).indices, 1.0) * p
    dense = strength * kept / kept.sum(-1, keepdim=True)
    dense[:, 49] += 1 - strength[:, 0]
    ours = embedded(soft_mask, logits, table)
    torch.testing.assert_close(ours, dense @ table, atol=1e-6, rtol=0)


def test_k_of_the_whole_vocabulary_is_the_full_mixture():
    table, logits = random_logits(50, 8, 1), random_logits(20, 50)
    kwargs = {"w_s": 0.8, "w_a": 1.0, "w_b": -2.0}
    sparse, full = SoftMask(k=50, **kwargs), SoftMask(k=None, temperature=1.0, **kwargs)
    torch.testing.assert_close(embedded(sparse, logits, table), embedded(full, logits, table), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [3, None])
def test_scale_zero_is_binary_masking_bit_for_bit(k):
    denoiser = Denoiser(small_dit(), mask_id=36, soft_mask=SoftMask(k=k))
    ids = torch.randint(0, 36, (2, 9))
    masked = torch.rand(2, 9) < 0.5
    ids[masked] = 36
    plain = denoiser.predict(ids, masked)
    feedback = denoiser.soft_mask.observe(plain)
    with torch.no_grad():
        denoiser.soft_mask.raw_scale.fill_(-torch.inf)
    assert float(denoiser.soft_mask.w_s) == 0
    assert torch.equal(plain, denoiser.predict(ids, masked, feedback))


def test_visible_positions_are_untouched_and_masked_ones_are_not(denoiser):
    ids = torch.randint(0, 36, (2, 9))
    masked = torch.rand(2, 9) < 0.5
    ids[masked] = 36
    plain = denoiser.embed(ids, masked)
    soft = denoiser.embed(ids, masked, denoiser.soft_mask.observe(denoiser.predict(ids, masked)))
    assert torch.equal(plain[~masked], soft[~masked])
    assert (plain[masked] != soft[masked]).any(-1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(5, 3000), st.integers(1, 5), st.integers(0, 999))
def test_top_k_equals_torch(n, v, k, seed):
    logits = random_logits(n, v, seed)
    values, indices = top_k(logits, k)
    expected = logits.topk(k)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)


def test_entropy_of_known_distributions():
    logits = torch.full((2, 16), FORBIDDEN)
    logits[0, :4] = 0.0
    logits[1, 3] = 5.0
    expected = torch.tensor([-math.log(4), 0.0])
    torch.testing.assert_close(statistics(logits)[1], expected, atol=1e-6, rtol=0)


def test_saved_scalars_come_back_exactly(tmp_path):
    soft_mask = SoftMask(k=2, w_s=0.123, w_a=3.3, w_b=-1.7)
    soft_mask.save(tmp_path)
    again = SoftMask.from_dict(json.loads((tmp_path / "soft_mask.json").read_text()))
    assert again.k == 2
    assert all(torch.equal(a, b) for a, b in zip(soft_mask.parameters(), again.parameters(), strict=True))
    assert soft_mask.values()["w_s"] == pytest.approx(0.123)
