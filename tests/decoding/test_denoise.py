import pytest
import torch

from smdiff.decoding.denoise import Options, denoise
from smdiff.decoding.sampling import Filtered, Noise, categorical, nucleus
from smdiff.decoding.schedulers import Ancestral
from smdiff.diffusion.prediction import Prediction
from smdiff.diffusion.soft_mask import SCHEDULES
from smdiff.models.denoiser import Denoiser


def fill(denoiser: Denoiser, rows: range, steps: int = 8, length: int = 12, **options) -> torch.Tensor:
    start = torch.full((len(rows), length), denoiser.mask_id)
    return list(denoise(denoiser, start, Ancestral(), steps, Noise(5, rows), Options(**options)))[-1].ids


@pytest.mark.parametrize("soft", [False, True])
def test_all_masks_are_filled_and_revealed_tokens_stay(denoiser, soft):
    start = torch.full((3, 12), denoiser.mask_id)
    start[:, 2] = 7
    before = start
    for step in denoise(denoiser, start, Ancestral(), 8, Noise(5, range(3)), Options(soft_mask=soft)):
        visible = before != denoiser.mask_id
        assert torch.equal(before[visible], step.ids[visible])
        before = step.ids
    assert (before != denoiser.mask_id).all()
    assert (before[:, 2] == 7).all()


def test_soft_masking_changes_the_text_and_scale_zero_does_not(denoiser):
    binary = fill(denoiser, range(4))
    assert not torch.equal(binary, fill(denoiser, range(4), soft_mask=True))
    with torch.no_grad():
        denoiser.soft_mask.raw_scale.fill_(-torch.inf)
    assert torch.equal(binary, fill(denoiser, range(4), soft_mask=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_text_does_not_depend_on_its_batch(denoiser, schedule):
    options = {"soft_mask": True, "soft_mask_schedule": schedule}
    together = fill(denoiser, range(8), **options)
    apart = torch.cat([fill(denoiser, range(i, i + 1), **options) for i in range(8)])
    assert torch.equal(together, apart)


def test_nfe_counts_every_call_and_no_empty_step(denoiser):
    calls = []
    denoiser.backbone.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    fill(denoiser, range(1), steps=100, length=3)
    assert denoiser.nfe == len(calls) <= 100


def test_categorical_is_exact_at_the_edges():
    probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).expand(3, 4)
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert categorical(probs, u).tolist() == [1, 2, 2]


def test_categorical_keeps_the_tail():
    """Tokens of probability 2e-6 each, 1 % together, are drawn as often as they should be, and evenly."""
    v, n = 5000, 20_000
    probs = torch.full((v,), 0.01 / v)
    probs[0] += 0.99
    u = Noise(3, range(1)).uniform(torch.ones(1, n, dtype=torch.bool), torch.ones(1, dtype=torch.bool))
    drawn = torch.cat([categorical(probs.expand(len(part), v), part) for part in u.split(2000)])
    tail = drawn[drawn != 0].double()
    assert abs(len(tail) - 0.01 * n) < 4 * (0.01 * n) ** 0.5
    assert abs(float(tail.mean()) / v - 0.5) < 4 * 0.29 / len(tail) ** 0.5


def test_nucleus_keeps_the_token_that_crosses():
    ordered = torch.tensor([[0.5, 0.3, 0.1, 0.1]])
    assert torch.equal(nucleus(ordered, 0.6), torch.tensor([[0.5, 0.3, 0.0, 0.0]]))
    assert torch.equal(nucleus(ordered, 0.6, drop_crossing=True), torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
    assert torch.equal(nucleus(ordered, 0.01), torch.tensor([[0.5, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("width", [0.3, 3.0, 30.0])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 0.9, 0), (0.1, 0.9, 0), (0.7, 1.0, 5), (1.0, 0.95, 50), (1.0, 1.0, 2000), (1.0, 0.9, 9000)],
)
def test_filters_equal_a_sort_of_the_vocabulary(width, temperature, top_p, top_k):
    """Few candidates, many, or all: whatever the width of the nucleus, the kept set and its law are the sort's."""
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(0)) * width
    ordered, order = (logits.double() / temperature).softmax(-1).sort(-1, descending=True)
    kept = nucleus(ordered, top_p) if top_p < 1 else ordered
    if top_k:
        kept[:, top_k:] = 0
    expected = torch.zeros_like(logits).scatter(1, order, (kept / kept.sum(-1, keepdim=True)).float())
    probs, ids = Filtered(Prediction(logits), temperature, top_p, top_k)._kept
    torch.testing.assert_close(torch.zeros_like(logits).scatter_add(1, ids, probs), expected, atol=1e-6, rtol=1e-4)
