import math

import pytest
import torch

from smdiff.data.corpora import MarkovChain
from smdiff.diffusion.noise import SCHEDULES, draw_step
from smdiff.diffusion.objective import negative_elbo
from smdiff.evaluation.text import Mean, bytes_per_token, elbo, mask_draws, verdict
from smdiff.files import dumps, write_whole
from smdiff.models.denoiser import Denoiser
from tests.conftest import small_dit


def test_masks_are_shared_stratified_and_cover_every_count():
    masks = torch.stack(list(mask_draws(torch.ones(50, 16, dtype=torch.bool), 8, seed=3)))
    assert torch.equal(masks, torch.stack(list(mask_draws(torch.ones(50, 16, dtype=torch.bool), 8, seed=3))))
    counts = masks.sum(-1)
    assert counts.min() >= 1
    assert counts.max() <= 16
    strata = (counts - 1) // 2  # 16 counts, 8 draws: two counts each
    assert torch.equal(strata.T.sort(1).values, torch.arange(8).expand(50, 8))
    assert torch.allclose(masks.float().mean((0, 1)), torch.full((16,), 17 / 32), atol=0.1)


class Oracle(Denoiser):
    """The true conditional of a Markov chain given the visible tokens, by forward-backward."""

    _linear_head = False

    def __init__(self, chain: MarkovChain) -> None:
        super().__init__(small_dit(vocab_size=33), mask_id=32)
        self.matrix = torch.tensor(chain.matrix)
        self.start = torch.tensor(chain.stationary())

    def hidden(self, ids, masked, feedback=None, scale=1.0, valid=None):
        evidence = torch.ones(*ids.shape, 32, dtype=torch.float64)
        evidence[~masked] = torch.nn.functional.one_hot(ids[~masked], 32).double()
        length = ids.shape[1]
        forward, backward = [self.start.expand(len(ids), 32)], [torch.ones(len(ids), 32, dtype=torch.float64)]
        for i in range(1, length):
            step = (forward[-1] * evidence[:, i - 1]) @ self.matrix
            forward.append(step / step.sum(-1, keepdim=True))
        for i in range(length - 1, 0, -1):
            step = (backward[-1] * evidence[:, i]) @ self.matrix.T
            backward.append(step / step.sum(-1, keepdim=True))
        return (torch.stack(forward, 1) * torch.stack(backward[::-1], 1))[masked]

    def logits(self, hidden):
        return torch.cat([hidden.log(), torch.full((len(hidden), 1), -torch.inf)], 1)


def chains(chain: MarkovChain, n: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.tensor(chain.matrix)
    rows = [torch.multinomial(torch.tensor(chain.stationary()), n, True, generator=generator)]
    for _ in range(length - 1):
        rows.append(torch.multinomial(matrix[rows[-1]], 1, generator=generator)[:, 0])
    return torch.stack(rows, 1)


def test_bound_of_the_true_conditional_is_the_entropy():
    """The ELBO is tight for the exact model, so the estimator's mean must be the chain's entropy."""
    chain = MarkovChain.drawn(0)
    x0 = chains(chain, 3000, 12)
    found = elbo(Oracle(chain), x0, draws=4, batch_size=1000)
    mean = Mean.of(found.one_pass)
    assert abs(mean.mean - chain.entropy(12)) < 4 * mean.standard_error
    assert mean.standard_error < 0.01


def exact_nats(chain: MarkovChain, x0: torch.Tensor) -> torch.Tensor:
    """(S,) -log p of chains (S, L) in nats a token."""
    matrix, start = torch.tensor(chain.matrix), torch.tensor(chain.stationary())
    steps = matrix[x0[:, :-1], x0[:, 1:]].log().sum(1)
    return -(start[x0[:, 0]].log() + steps) / x0.shape[1]


def test_the_estimate_is_unbiased_and_its_error_falls_with_the_draws():
    """Of each chain by itself: under the true conditional the expected estimate is -log p exactly."""
    chain = MarkovChain.drawn(3)
    x0 = chains(chain, 2000, 12)
    exact, oracle = exact_nats(chain, x0), Oracle(chain)
    single = [elbo(oracle, x0, draws=1, seed=s, batch_size=2000).one_pass - exact for s in range(16)]
    stratified = {d: elbo(oracle, x0, draws=d, seed=99, batch_size=2000).one_pass - exact for d in (4, 8, 16)}
    for errors in (torch.cat(single), *stratified.values()):
        assert abs(float(errors.mean())) < 3 * float(errors.std()) / len(errors) ** 0.5
    plain = {d: float(torch.stack(single).view(16 // d, d, -1).mean(1).std()) for d in (1, 2, 4, 8, 16)}
    for d in (1, 2, 4, 8):  # one over the square root
        assert plain[d] / plain[2 * d] == pytest.approx(2**0.5, rel=0.1)
    factor = plain[16] / float(stratified[16].std())
    print(f"error of 16 plain draws over that of 16 stratified ones: {factor:.2f}")
    assert factor > 1.2
    assert float(stratified[4].std()) / float(stratified[16].std()) > 2


def test_an_autoregressive_model_is_scored_exactly():
    dit = small_dit(37, is_causal=True)
    denoiser, x0 = Denoiser(dit, 36), torch.randint(0, 36, (5, 8))
    found = elbo(denoiser, x0, batch_size=2)
    before = torch.cat([torch.full((5, 1), 36), x0[:, :-1]], 1)
    with torch.no_grad():
        logits = dit(before)
        changed = before.clone()
        changed[:, -1] = 0
        assert torch.equal(dit(changed)[:, :-1], logits[:, :-1])  # nothing looks ahead
    logits[..., 36] = -torch.inf
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), x0, reduction="none").mean(1)
    torch.testing.assert_close(found.bound.float(), nll, rtol=1e-5, atol=1e-6)
    assert found.two_pass is None


def test_agrees_with_the_training_objective_and_varies_less():
    torch.manual_seed(0)
    denoiser = Denoiser(small_dit(), 36)
    x0 = torch.randint(0, 36, (400, 12))
    ours = torch.stack([elbo(denoiser, x0, draws=4, seed=s).one_pass.mean() for s in range(12)])
    plain = []
    with torch.no_grad():
        for step in range(48):
            draw = draw_step(SCHEDULES["log-linear"], seed=9, step=step, rows=400, length=12)
            plain.append(negative_elbo(denoiser, x0, draw, SCHEDULES["log-linear"], 36).total / x0.numel())
    theirs = torch.stack(plain).view(12, 4).mean(1)
    error = (ours.var() / 12 + theirs.var() / 12).sqrt()
    assert abs(float(ours.mean() - theirs.mean())) < 4 * float(error)
    assert ours.std() < theirs.std()


def test_batches_do_not_change_the_score_and_two_passes_do(denoiser):
    x0 = torch.randint(0, 36, (10, 8))
    one, other = elbo(denoiser, x0, batch_size=10), elbo(denoiser, x0, batch_size=3)
    torch.testing.assert_close(one.one_pass, other.one_pass, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.two_pass, other.two_pass, atol=1e-5, rtol=0)
    assert (one.two_pass - one.one_pass).abs().max() > 1e-3
    binary = elbo(Denoiser(denoiser.backbone, 36), x0)
    assert binary.two_pass is None
    torch.testing.assert_close(binary.bound, one.one_pass, atol=1e-6, rtol=0)


def test_two_passes_cost_two_calls_and_give_both_figures(denoiser):
    elbo(denoiser, torch.randint(0, 36, (10, 8)), draws=3, batch_size=10)
    assert denoiser.nfe == 6


def test_uniform_predictor_scores_log_v():
    dit = small_dit()
    with torch.no_grad():
        dit.output_layer.linear.weight.zero_()
        dit.output_layer.linear.bias.zero_()
    found = elbo(Denoiser(dit, 36), torch.randint(0, 36, (4, 8)))
    torch.testing.assert_close(found.one_pass, torch.full((4,), math.log(36), dtype=torch.float64), atol=1e-5, rtol=0)


def test_mean_interval_and_verdict():
    values = Mean.of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values.mean == 2.5
    assert values.standard_error == pytest.approx(1.2909944 / 2)
    assert verdict(Mean(-0.1, 0.01, 9)) == "lower"
    assert verdict(Mean(0.1, 0.01, 9)) == "higher"
    assert verdict(Mean(0.01, 0.01, 9)) == "within noise"
    assert verdict(Mean.of(torch.tensor([1.0]))) == "one sequence only"
    assert bytes_per_token(["ab", "\u00fc"], 2) == 2


def test_json_is_valid_and_whole(tmp_path):
    assert dumps({"a": [math.nan, 1.0], "b": (math.inf,)}, None) == '{"a": [null, 1.0], "b": [null]}'
    target = tmp_path / "x.json"
    target.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
