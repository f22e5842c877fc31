import pytest
import torch

from smdiff.decoding.denoise import denoise
from smdiff.decoding.sampling import Noise, categorical, nucleus
from smdiff.decoding.schedulers import Ancestral, State
from smdiff.diffusion.soft_mask import SCHEDULES, SoftMask
from smdiff.models.denoiser import Denoiser


class ReferenceDraw(Ancestral):
    """The reference's single draw over vocabulary and mask, with injected uniforms (steps, B, L, V)."""

    def __init__(self, uniform: torch.Tensor, mask_id: int) -> None:
        super().__init__()
        self.uniform, self.mask_id, self.calls = uniform, mask_id, 0

    def step(self, state: State, logits: torch.Tensor) -> torch.Tensor:
        table = logits.softmax(-1) * (state.t - state.s)
        table[:, self.mask_id] = state.s
        u = self.uniform[self.calls][state.masked]
        self.calls += 1
        drawn = (table.double() / (1e-10 - (u.double() + 1e-10).log())).argmax(-1)
        return state.ids.masked_scatter(state.masked, drawn)


@pytest.mark.parametrize("index", [0, 1], ids=["binary", "soft-masked"])
def test_generation_matches_reference(golden, golden_dit, index):
    case = golden("language_generate")
    run, head = case.info["runs"][index], case.info["tran_head"]
    soft_mask = SoftMask(3, head["init_scale"], head["init_steep"], head["init_centre"]) if run["soft_mask"] else None
    denoiser = Denoiser(golden_dit, case.info["mask_id"], soft_mask)
    start = torch.full_like(case[f"{run['name']}.final"], case.info["mask_id"])
    scheduler = ReferenceDraw(case[f"{run['name']}.uniform"], case.info["mask_id"])
    states = [start] + [
        step.ids for step in denoise(denoiser, start, scheduler, run["steps"], Noise(0, range(2)), run["soft_mask"])
    ]
    before = case[f"{run['name']}.x_before_step"]
    for ours, theirs in zip(states, before, strict=False):
        assert torch.equal(ours, theirs)
    assert torch.equal(states[-1], case[f"{run['name']}.final"])
    # The reference makes its last call whether or not a mask is left; ours makes it only for one.
    left = bool((states[run["steps"]] == case.info["mask_id"]).any())
    assert denoiser.nfe == run["model_calls"] - (not left)


def fill(denoiser: Denoiser, rows: range, steps: int = 8, length: int = 12, **options) -> torch.Tensor:
    start = torch.full((len(rows), length), denoiser.mask_id)
    return list(denoise(denoiser, start, Ancestral(), steps, Noise(5, rows), **options))[-1].ids


@pytest.mark.parametrize("soft", [False, True])
def test_all_masks_are_filled_and_revealed_tokens_stay(denoiser, soft):
    start = torch.full((3, 12), denoiser.mask_id)
    start[:, 2] = 7
    before = start
    for step in denoise(denoiser, start, Ancestral(), 8, Noise(5, range(3)), soft_mask=soft):
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


def test_two_stage_draw_follows_the_joint_law():
    n, probs = 200_000, torch.tensor([0.6, 0.3, 0.0, 0.1])
    where = torch.ones(1, n, dtype=torch.bool)
    scheduler = Ancestral()
    state = State(torch.full((1, n), 4), where, t=0.5, s=0.45, noise=Noise(1, range(1)))
    counts = torch.bincount(scheduler.step(state, probs.log().expand(n, 4))[0], minlength=5)
    expected = torch.cat([probs * 0.1, torch.tensor([0.9])]) * n
    assert counts[2] == 0
    chi_square = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert float(chi_square) < 16.3  # 3 degrees of freedom, p = 0.001


def test_categorical_is_exact_at_the_edges():
    probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).expand(3, 4)
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert categorical(probs, u).tolist() == [1, 2, 2]


def test_categorical_keeps_the_tail():
    """Tokens of probability 2e-6 each, 1 % together, are drawn as often as they should be, and evenly."""
    v, n = 5000, 20_000
    probs = torch.full((v,), 0.01 / v)
    probs[0] += 0.99
    u = Noise(3, range(1)).uniform(torch.ones(1, n, dtype=torch.bool))
    drawn = torch.cat([categorical(probs.expand(len(part), v), part) for part in u.split(2000)])
    tail = drawn[drawn != 0].double()
    assert abs(len(tail) - 0.01 * n) < 4 * (0.01 * n) ** 0.5
    assert abs(float(tail.mean()) / v - 0.5) < 4 * 0.29 / len(tail) ** 0.5


def test_nucleus_keeps_the_token_that_crosses():
    kept = nucleus(torch.tensor([[0.1, 0.5, 0.3, 0.1]]), 0.6)
    torch.testing.assert_close(kept, torch.tensor([[0.0, 0.625, 0.375, 0.0]]))
    assert torch.equal(nucleus(kept, 1.0), kept)
    torch.testing.assert_close(nucleus(torch.tensor([[0.9, 0.1]]), 0.01), torch.tensor([[1.0, 0.0]]))
