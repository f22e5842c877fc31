"""The output layer and its loss in one: the numbers of plain autograd, in parts of any size."""

import pytest
import torch
import torch.nn.functional as F

from smdiff.models import denoiser as denoiser_module
from smdiff.models import head
from smdiff.models.denoiser import Denoiser
from smdiff.models.head import WeightedNll, few_rows, in_autocast, linear, logit_blocks
from tests.conftest import small_dit

V, D = 2100, 24


def inputs(n: int, frozen: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(n, D), torch.randn(V, D), torch.randn(V)
    return [hidden.requires_grad_(), weight.requires_grad_(not frozen), bias.requires_grad_(not frozen)]


def plain(hidden, weight, bias, targets, factors):
    nll = F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="none")
    return (nll * factors).sum(), nll


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 512])
@pytest.mark.parametrize("half", [False, True])
def test_the_weighted_loss_and_its_gradients_are_those_of_autograd(rows, half, frozen, monkeypatch):
    monkeypatch.setattr(head, "_ROWS", {True: rows})
    targets, factors = torch.randint(0, V, (9,)), torch.rand(9) * 5
    found = []
    for loss in (plain, WeightedNll.apply):
        given = inputs(9, frozen)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            total, nll = loss(*given, targets, factors)
        (total / 7).backward()
        found.append([total.detach(), nll.detach(), *(x.grad for x in given if x.requires_grad)])
    for expected, ours in zip(*found, strict=True):
        assert ours.dtype == expected.dtype
        assert float((ours - expected).norm() / expected.norm()) < (6e-3 if half else 1e-6)


def test_an_output_layer_of_another_kind_has_the_same_loss(monkeypatch):
    """As with an adapter on it: logits are kept, or computed again, and the sum is taken of what they give."""
    torch.manual_seed(0)
    ids, where = torch.arange(24).view(2, 12), torch.ones(2, 12, dtype=torch.bool)
    backbone, weight, found = small_dit(), torch.rand(24) * 5, []
    for linear_head, kept in ((True, 0), (False, 2**24), (False, 0)):
        monkeypatch.setattr(Denoiser, "_linear_head", linear_head)
        for name in ("_KEPT_LOGITS", "_LOGITS_AT_ONCE"):
            monkeypatch.setattr(denoiser_module, name, {True: kept})
        backbone.zero_grad()
        scores = Denoiser(backbone, 36)(ids, where, targets=ids.flatten(), weight=weight)
        scores.total.backward()
        found.append([scores.total.detach(), scores.nll.detach(), *(p.grad for p in backbone.parameters())])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-5)


def test_a_target_that_is_next_to_impossible_has_a_finite_loss():
    hidden, weight, bias = inputs(3)
    total, nll = WeightedNll.apply(100 * hidden, weight, bias, torch.tensor([0, 1, 2]), torch.ones(3))
    assert torch.isfinite(total)
    assert float(nll.max()) > 150  # p is 0 in float32
    total.backward()
    assert torch.isfinite(hidden.grad).all()


def test_gradients_are_made_once():
    given = inputs(2)
    total, _ = WeightedNll.apply(*given, torch.tensor([0, 1]), torch.ones(2))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


def test_nothing_masked_is_no_error():
    given = inputs(0)
    total, nll = WeightedNll.apply(*given, torch.zeros(0, dtype=torch.long), torch.ones(0))
    total.backward()
    assert (float(total.detach()), nll.shape, float(given[1].grad.abs().sum())) == (0, (0,), 0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_in_parts_are_the_logits(dtype, monkeypatch):
    monkeypatch.setattr(head, "_ROWS", {True: 4})
    given = [x.detach().to(dtype) for x in inputs(9)]
    expected = F.linear(*given)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for product in (linear, few_rows):
        torch.testing.assert_close(product(*given), expected, **tolerance)
    parts = [(part, logits.clone()) for part, logits in logit_blocks(*given)]
    assert len(parts) == 3
    for part, logits in parts:
        torch.testing.assert_close(logits, expected[part], **tolerance)


def test_what_autocast_takes():
    with torch.autocast("cpu", torch.bfloat16):
        assert {x.dtype for x in in_autocast(*inputs(2))} == {torch.bfloat16}
    assert {x.dtype for x in in_autocast(*inputs(2))} == {torch.float32}
