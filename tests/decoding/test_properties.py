"""What every scheduler must keep to, on small real models, whatever the steps, blocks, caches and soft-masking."""

import dataclasses
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from smdiff.decoding.blocks import Block, blocks_of
from smdiff.decoding.denoise import Options, Step, denoise
from smdiff.decoding.sampling import Noise
from smdiff.decoding.schedulers import SCHEDULERS, Ancestral, Scheduler, State
from smdiff.decoding.schedulers.confidence import Counted
from smdiff.decoding.schedulers.remdm import Cap, Conf, Loop, Rescale, sigma_max
from smdiff.diffusion.prediction import Prediction
from smdiff.diffusion.soft_mask import SCHEDULES, SoftMask
from smdiff.models.denoiser import Denoiser
from tests.conftest import small_dit

MODELS = ("dit", "causal")
# Never predicted beside the mask. Prompts may hold them.
FORBIDDEN = (3, 16)
SOFT = [Options(), *(Options(soft_mask=True, soft_mask_schedule=name) for name in SCHEDULES)]
# Rows with as many masks take as many steps, so with blocks a row draws as often as it does alone.
PACED = [name for name, kind in SCHEDULERS.items() if issubclass(kind, Counted)]

few = functools.partial(settings, deadline=None, derandomize=True, database=None)


class Checked(Denoiser):
    """Feedback goes to masks only: a revealed token is its own embedding, whatever was predicted there before."""

    def embed(self, ids, blended, feedback=None, scale=1.0):
        assert feedback is None or (ids[blended] == self.mask_id).all()
        return super().embed(ids, blended, feedback, scale)


@functools.cache
def model(name: str) -> Denoiser:
    """A DiT, or a causal model turned bidirectional with shifted logits, whose predictions differ between positions."""
    soft_mask = SoftMask(k=3, w_s=0.7, w_a=1.0, w_b=-2.0)
    if name == "dit":
        backbone, mask_id, shift = small_dit(), 36, False
        first = backbone.blocks[0]
    else:
        torch.manual_seed(1)
        config = Qwen2Config(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, is_causal=False, mask_token_id=39,
            initializer_range=0.3,
        )  # fmt: skip
        backbone, mask_id, shift = Qwen2ForCausalLM(config).eval(), 39, True
        first = backbone.model.layers[0]
    denoiser = Checked(backbone, mask_id, soft_mask, shift, forbidden=[mask_id, *FORBIDDEN])
    denoiser.spied = 0

    def count(*_):
        denoiser.spied += 1

    first.register_forward_hook(count)
    return denoiser


def end_of(denoiser: Denoiser) -> int:
    """A token that the model likes, so that texts do end."""
    return 11 if denoiser.shift else 2


def prompted(denoiser: Denoiser, batch: int, prompt: int, new: int, seed: int = 0) -> torch.Tensor:
    """(B, prompt + new) random prompts before masks."""
    tokens = torch.randint(0, 30, (batch, prompt), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.pad(tokens, (0, new), value=denoiser.mask_id)


def run(denoiser, ids, scheduler, steps, options=None, *, noise=None, **more) -> list[Step]:
    return list(denoise(denoiser, ids, scheduler, steps, noise or Noise(7, range(len(ids))), options, **more))


def final(*args, **more) -> torch.Tensor:
    return run(*args, **more)[-1].ids


# --- 1 to 3: what is written, what is left, what it costs -------------------------------------------------------------


@st.composite
def cases(draw, kind: type[Scheduler]):
    """A model, rows with random given tokens, blocks, steps and options."""
    denoiser = model(draw(st.sampled_from(MODELS)))
    length, prompt = draw(st.sampled_from([1, 2, 3, 4, 6, 12])), draw(st.integers(0, 3))
    blocks = 12 // length
    steps = draw(st.integers(blocks, 30 if kind.remasks else 12))
    ids = prompted(denoiser, 2, prompt, 12)
    # The second row has given tokens anywhere, up to all of it.
    known = torch.rand(prompt + 12, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    ids[1] = torch.where(known < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])), 3, ids[1])
    options = dataclasses.replace(
        draw(st.sampled_from(SOFT)),
        cache=draw(st.sampled_from(["none", "prefix", "dual"])),
        refresh=draw(st.integers(0, 2)),
    )
    scheduler = kind(
        temperature=draw(st.sampled_from([0.0, 1.0])),
        top_p=draw(st.sampled_from([0.9, 1.0])),
        top_k=draw(st.sampled_from([0, 5])),
    )
    return denoiser, ids, scheduler, steps, blocks_of(prompt, prompt + 12, length, steps), options


@pytest.mark.parametrize("name", SCHEDULERS)
@given(data=st.data())
@few(max_examples=5)
def test_tokens_stay_masks_go_and_passes_are_counted(name, data):
    denoiser, ids, scheduler, steps, blocks, options = data.draw(cases(SCHEDULERS[name]))
    writable = ids == denoiser.mask_id
    before, nfe, denoiser.spied = ids, 0, 0
    allowed = torch.tensor([i for i in range(denoiser.vocab_size) if i not in (denoiser.mask_id, *FORBIDDEN)])
    for step in denoise(denoiser, ids, scheduler, steps, Noise(7, range(2)), options, blocks=blocks):
        assert torch.equal(step.ids[~writable], ids[~writable])
        if not scheduler.remasks:
            visible = before != denoiser.mask_id
            assert torch.equal(step.ids[visible], before[visible])
        assert torch.equal(step.masked, writable & (step.ids == denoiser.mask_id))
        assert torch.isin(step.ids[writable & ~step.masked], allowed).all()
        assert not step.confidence[~writable | step.masked].any()
        assert nfe <= step.nfe == denoiser.nfe == denoiser.spied
        before, nfe = step.ids, step.nfe
    assert not (before == denoiser.mask_id).any()
    # The most that one row has to fill in a block is the most steps an adaptive rule needs there.
    in_blocks = sum(int(writable[:, b.start : b.end].sum(1).max()) for b in blocks)
    assert nfe <= (in_blocks if scheduler.adaptive else steps + len(blocks))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guidance_costs_twice_and_nothing_forbidden_comes_of_it(name):
    """Extrapolating two -inf logits must not make NaN or a forbidden token of them."""
    denoiser = model("causal")
    ids = prompted(denoiser, 2, 3, 6)
    denoiser.spied = 0
    last = run(denoiser, ids, SCHEDULERS[name](temperature=1.0), 4, Options(soft_mask=True, guidance=1.5))[-1]
    assert not torch.isin(last.ids[:, 3:], torch.tensor([denoiser.mask_id, *FORBIDDEN])).any()
    assert last.nfe == denoiser.spied > 0
    assert last.nfe % 2 == 0


# --- 4: remasking rates and their marginals ---------------------------------------------------------------------------


def state_of(masked, t, s, *, confidence=None, index=0, steps=10, noise=None) -> State:
    ids = torch.where(masked, 1, 0)
    if confidence is None:
        confidence = torch.zeros(masked.shape)
    return State(
        ids, masked, torch.ones_like(masked), confidence, index, steps, t, s, noise or Noise(0, range(len(masked))),
        alive=torch.ones(len(masked), dtype=torch.bool),
    )  # fmt: skip


@given(
    kind=st.sampled_from([Cap, Rescale, Conf]),
    t=st.floats(1e-6, 1),
    share=st.floats(0, 1),
    eta=st.one_of(st.none(), st.floats(0, 1)),
    steps=st.sampled_from([1, 10, 1023, 1024]),
    seed=st.integers(0, 9),
)
@few(max_examples=100)
def test_sigma_stays_within_its_bound(kind, t, share, eta, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(3, 9, generator=generator)
    masked = torch.rand(3, 9, generator=generator) < seed / 9  # none and all among them
    state = state_of(masked, t, t * share, confidence=confidence.masked_fill(masked, 0.0), steps=steps)
    scheduler = kind() if kind is Conf or eta is None else kind(eta=eta)
    sigma, rate = (torch.as_tensor(x) for x in (scheduler.sigma(state), scheduler.reveal_rate(state)))
    assert ((sigma >= 0) & (sigma <= sigma_max(state) + 1e-12)).all()
    assert ((rate >= -1e-12) & (rate <= 1 + 1e-9)).all()


def mask_shares(scheduler: Scheduler, steps: int, shape=(8, 500)):
    """(t, s, share of masks after the step), the scheduler driven by hand under a model that is always uniform."""
    masked, confidence = torch.ones(shape, dtype=torch.bool), torch.zeros(shape)
    noise = Noise(11, range(shape[0]))
    for index, (t, s) in enumerate(scheduler.timesteps(steps)):
        state = state_of(masked, t, s, confidence=confidence, index=index, steps=steps, noise=noise)
        where = scheduler.plan(state)
        move = scheduler.step(state, where, Prediction(torch.zeros(int(where.sum()), 5)))
        masked = masked & ~move.revealed
        confidence = confidence.masked_fill(move.revealed, 0.2)
        if move.remasked is not None:
            masked, confidence = masked | move.remasked, confidence.masked_fill(move.remasked, 0.0)
        yield t, s, float(masked.double().mean())


def standard_error(share: float, n: int = 4000) -> float:
    return (share * (1 - share) / n) ** 0.5


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize(
    "scheduler",
    [SCHEDULERS["ancestral"](), SCHEDULERS["origin"](temperature=1.0), Cap(), Cap(eta=0.3), Rescale(),
     Rescale(eta=0.7), Conf()],
    ids=lambda x: type(x).__name__ + str(getattr(x, "eta", "")),
)  # fmt: skip
def test_the_share_of_masks_follows_alpha(scheduler, steps):
    """Remasking must not change how many masks there are at a time, only which ones."""
    for _, s, share in mask_shares(scheduler, steps):
        assert abs(share - s) <= 4 * standard_error(s)


def test_the_loop_stays_at_its_level():
    scheduler, looped = Loop(), 0
    level = 1 - scheduler.alpha_on
    for t, _, share in mask_shares(scheduler, 200):
        if scheduler.t_off < t <= scheduler.t_on:
            assert abs(share - level) <= 4 * standard_error(level)
            looped += 1
    assert looped == 100


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_a_coarse_loop_begins_at_its_level(steps):
    """The step that crosses t_on must not go on at the first phase's pace: it would reveal everything."""
    scheduler = Loop()
    entry = [share for t, s, share in mask_shares(scheduler, steps) if s <= scheduler.t_on < t]
    level = 1 - scheduler.alpha_on
    assert abs(entry[0] - level) <= 4 * standard_error(level)


# --- 5: the law of the draw -------------------------------------------------------------------------------------------


def chi_square(counts: torch.Tensor, law: torch.Tensor) -> float:
    expected = law.double() * counts.sum()
    assert expected.min() >= 5
    return float(((counts - expected) ** 2 / expected).sum())


# 99.9 % of the chi-square law, by degrees of freedom
CRITICAL = {10: 29.6, 12: 32.9}


def two_stage(probs: torch.Tensor, rate: float, n: int) -> torch.Tensor:
    """(n,) tokens, or the number of tokens for the mask, from `Ancestral` at one position each."""
    scheduler, masked = Ancestral(top_p=1.0), torch.ones(1, n, dtype=torch.bool)
    state = state_of(masked, 0.5, 0.5 * (1 - rate), noise=Noise(3, range(1)))
    where = scheduler.plan(state)
    move = scheduler.step(state, where, Prediction(probs.log().expand(int(where.sum()), -1)))
    return torch.full((1, n), len(probs)).masked_scatter(move.revealed, move.tokens)[0]


@pytest.mark.parametrize(("rate", "n"), [(0.1, 200_000), (0.01, 500_000), (0.001, 1_500_000)])
def test_the_two_stage_draw_follows_the_joint_law(rate, n):
    probs = 0.7 ** torch.arange(12, dtype=torch.float64)
    probs /= probs.sum()
    law = torch.cat([probs * rate, torch.tensor([1 - rate])])
    drawn = two_stage(probs.float(), rate, n)
    assert chi_square(torch.bincount(drawn, minlength=13), law) < CRITICAL[12]


V, RARE, BINS = 50_000, 1e-3, 10


def gumbel_float32(n: int) -> torch.Tensor:
    """(n,) as `two_stage` for uniform tokens, by argmax(log p - log(-log u)) over tokens and mask with float32 u.

    No float32 u lies between 1 - 2^-24 and 1, so a token's score has a ceiling; a row whose mask is above it needs no
    further draws.
    """
    generator = torch.Generator().manual_seed(5)
    log_p, log_mask = (torch.tensor(p, dtype=torch.float32).log() for p in (RARE / V, 1 - RARE))
    mask = log_mask - (-torch.rand(n, generator=generator).log()).log()
    ceiling = log_p - (-torch.tensor(1 - 2**-24, dtype=torch.float32).log()).log()
    drawn = torch.full((n,), V)
    for rows in (mask <= ceiling).nonzero()[:, 0].split(50):
        u = torch.rand(len(rows), V, generator=generator)
        score, token = u.log_().neg_().log_().neg_().add_(log_p).max(-1)
        drawn[rows] = torch.where(score > mask[rows], token, V)
    return drawn


@pytest.mark.parametrize("exact", [True, False], ids=["ours", "float32 Gumbel"])
def test_the_tail_of_a_large_vocabulary(exact):
    """50,000 tokens that share a reveal rate of 0.001. The same check must see what float32 Gumbel noise loses."""
    n = 60_000
    drawn = two_stage(torch.full((V,), 1 / V), RARE, n) if exact else gumbel_float32(n)
    law = torch.tensor([RARE / BINS] * BINS + [1 - RARE], dtype=torch.float64)
    statistic = chi_square(torch.bincount(drawn // (V // BINS), minlength=BINS + 1), law)
    assert statistic < CRITICAL[10] if exact else statistic > CRITICAL[10] + 10


# --- 6: padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [SOFT[0], SOFT[2]], ids=["binary", "soft"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("name", MODELS)
def test_a_padded_batch_equals_single_prompts(name, cache, options):
    # No empty prompt: among nothing but masks all predictions are equal, and rounding alone decides which is best.
    denoiser, lengths, new, steps = model(name), [2, 6, 1], 8, 5
    options = dataclasses.replace(options, cache=cache)
    rows = [prompted(denoiser, 1, n, new, seed=n) for n in lengths]
    pads = [max(lengths) - n for n in lengths]
    ids = torch.cat([torch.nn.functional.pad(row, (pad, 0), value=0) for row, pad in zip(rows, pads, strict=True)])
    valid = torch.arange(ids.shape[1]) >= torch.tensor(pads)[:, None]
    cases = [("entropy", 0.0, 4), ("maskgit_plus", 1.0, 4), ("ancestral", 1.0, new)]
    for scheduler, temperature, length in cases:
        kind = SCHEDULERS[scheduler](temperature=temperature)
        blocks = blocks_of(6, 6 + new, length, steps)
        noise = Noise(7, range(3), pads)
        together = final(denoiser, ids, kind, steps, options, noise=noise, blocks=blocks, valid=valid)
        for i, (row, pad) in enumerate(zip(rows, pads, strict=True)):
            own = [Block(b.start - pad, b.end - pad, b.steps) for b in blocks]
            alone = final(denoiser, row, kind, steps, options, noise=Noise(7, [i]), blocks=own)
            assert torch.equal(together[i, pad:], alone[0])
            assert (together[i, :pad] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_prompt_does_not_hear_its_padding(name):
    """Shifted or not, the first position of the text is predicted by its own output, not by the padding's."""
    denoiser = model(name)
    alone = torch.full((1, 8), denoiser.mask_id)
    ids = torch.cat([torch.nn.functional.pad(alone, (3, 0), value=0), prompted(denoiser, 1, 3, 8)])
    valid = torch.arange(11) >= torch.tensor([[3], [0]])
    together = final(denoiser, ids, Ancestral(), 8, SOFT[1], noise=Noise(7, range(2), [3, 0]), valid=valid)
    assert torch.equal(together[:1, 3:], final(denoiser, alone, Ancestral(), 8, SOFT[1], noise=Noise(7, [0])))


# --- 7: what must be the plain sampler --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("backbone", MODELS)
def test_scale_zero_is_the_plain_sampler(backbone, name, monkeypatch):
    denoiser = model(backbone)
    monkeypatch.setattr(denoiser.soft_mask.raw_scale, "data", torch.tensor(-torch.inf))
    ids = prompted(denoiser, 2, 2, 8)
    scheduler = SCHEDULERS[name](temperature=1.0)
    blocks = blocks_of(2, 10, 4, 4)
    plain, soft = (run(denoiser, ids, scheduler, 4, options, blocks=blocks) for options in SOFT[:2])
    assert len(soft) == len(plain)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(soft, plain, strict=True))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_soft_masking_does_something(name):
    """Or the tests that compare it with something prove nothing."""
    denoiser = model("dit")
    ids = prompted(denoiser, 4, 2, 12)
    scheduler = SCHEDULERS[name](temperature=1.0)
    assert not torch.equal(final(denoiser, ids, scheduler, 6), final(denoiser, ids, scheduler, 6, SOFT[1]))


@pytest.mark.parametrize("options", SOFT, ids=["binary", *SCHEDULES])
@pytest.mark.parametrize("remdm", [Cap(eta=0.0), Rescale(eta=0.0)], ids=["cap", "rescale"])
def test_no_remasking_is_the_ancestral_sampler(remdm, options):
    for name, steps in (("dit", 12), ("causal", 5)):
        denoiser = model(name)
        ids = prompted(denoiser, 2, 2, 10)
        ours = run(denoiser, ids, remdm, steps, options)
        theirs = run(denoiser, ids, Ancestral(), steps, options)
        # Without masks the ancestral sampler is done; remasking goes on and changes nothing.
        for a, b in itertools.zip_longest(ours, theirs, fillvalue=theirs[-1]):
            assert torch.equal(a.ids, b.ids)


# --- 8: caches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [SOFT[0], SOFT[2]], ids=["binary", "soft"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", MODELS)
def test_a_cache_that_is_always_fresh_changes_nothing(name, cache, options):
    denoiser = model(name)
    ids = prompted(denoiser, 2, 3, 8)
    cached = dataclasses.replace(options, cache=cache, refresh=1)
    for scheduler in (SCHEDULERS["entropy"](), SCHEDULERS["threshold"](temperature=1.0), Cap(eta=0.3)):
        blocks = blocks_of(3, 11, 4, 6)
        ours, theirs = (run(denoiser, ids, scheduler, 6, o, blocks=blocks) for o in (cached, options))
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.where, b.where)
            torch.testing.assert_close(a.prediction.logits, b.prediction.logits, atol=1e-5, rtol=0)
            assert torch.equal(a.ids, b.ids)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("cache", "end"), [("prefix", 11), ("dual", 7)])
def test_a_cached_pass_computes_its_window_only(name, cache, end):
    """And the first pass of a block is over everything, so the first block's first token needs no approximation."""
    denoiser, widths = model(name), []
    ids = prompted(denoiser, 2, 3, 8)
    layer = denoiser.backbone.model.layers[0] if denoiser.shift else denoiser.backbone.blocks[0]
    hook = layer.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[1]))
    run(denoiser, ids, SCHEDULERS["low_confidence"](), 4, Options(cache=cache), blocks=blocks_of(3, 11, 4, 4))
    hook.remove()
    starts = [3, 7]
    ends = [11, 11] if cache == "prefix" else [end, 11]
    assert widths == [w for a, b in zip(starts, ends, strict=True) for w in (11, b - a + denoiser.shift)]


# --- 9: stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
@given(
    backbone=st.sampled_from(MODELS), options=st.sampled_from(SOFT), steps=st.integers(1, 12), seed=st.integers(0, 99)
)
@few(max_examples=3)
def test_stopping_changes_nothing_before_the_end(name, backbone, options, steps, seed):
    """Up to a row's first end-of-text nothing changes, nor in other rows; after it, undecided positions become it."""
    denoiser = model(backbone)
    stop = end_of(denoiser)
    ids = prompted(denoiser, 4, 2, 12, seed)
    ids[0, 1] = stop  # in a prompt it ends nothing
    scheduler, stops = SCHEDULERS[name](temperature=1.0), dataclasses.replace(options, ends=(stop,), stop=True)
    # A row that stops may let its batch leave a block earlier, so with blocks only rules with a fixed pace.
    blocks = blocks_of(2, 14, 6, steps) if name in PACED and steps > 1 else None
    full, cut = (
        run(denoiser, ids, scheduler, steps, o, noise=Noise(seed, range(4)), blocks=blocks) for o in (options, stops)
    )
    assert cut[-1].nfe <= full[-1].nfe
    for a, b in zip(full[-1].ids.tolist(), cut[-1].ids.tolist(), strict=True):
        end = a.index(stop, 2) if stop in a[2:] and not scheduler.remasks else len(a)
        assert b[: end + 1] == a[: end + 1]
        assert all(ours in (stop, theirs) for ours, theirs in zip(b, a, strict=True))


def test_stopping_saves_passes_and_fills_with_the_end():
    """From left to right (blocks of one), all after the first end-of-text is end-of-text."""
    denoiser = model("causal")
    ids, blocks = prompted(denoiser, 2, 2, 12), blocks_of(2, 14, 1, 12)
    scheduler = SCHEDULERS["low_confidence"](temperature=1.0)
    full = final(denoiser, ids, scheduler, 12, blocks=blocks)
    for stop in {full[0, 4].item(), full[1, 5].item()}:
        last = run(denoiser, ids, scheduler, 12, Options(ends=(stop, 0), stop=True), blocks=blocks)[-1]
        done = []
        for a, b in zip(full[:, 2:].tolist(), last.ids[:, 2:].tolist(), strict=True):
            end = min((a.index(x) for x in (stop, 0) if x in a), default=len(a))
            assert b == a[: end + 1] + [stop] * (len(a) - end - 1)
            done.append(min(end + 1, 12))
        assert last.nfe == max(done)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("first", [1, 12])
def test_no_end_among_the_first_tokens(name, first):
    ended = 0
    for backbone, options in zip(MODELS, SOFT[:2], strict=True):
        denoiser = model(backbone)
        options = dataclasses.replace(options, ends=(end_of(denoiser), 0), suppress_ends=first)
        ids = prompted(denoiser, 8, 2, 12)
        new = final(denoiser, ids, SCHEDULERS[name](temperature=1.0), 6, options)[:, 2:]
        ends = torch.isin(new, torch.tensor(options.ends))
        assert not ends[:, :first].any()
        assert not torch.isin(new, torch.tensor(FORBIDDEN)).any()
        ended += int(ends.sum())
    assert ended or first == 12


# --- 10: batches ------------------------------------------------------------------------------------------------------


def together_and_apart(name, backbone, options, steps, seed, *, batch=3, **more):
    denoiser = model(backbone)
    ids = prompted(denoiser, batch, 2, 12, seed)
    ids[0, 4:7] = 9  # rows need not have the same masks
    scheduler = SCHEDULERS[name](temperature=1.0, **({"alg_temp": 0.5} if name in PACED and seed % 2 else {}))
    rows = range(40, 40 + batch)
    together = final(denoiser, ids, scheduler, steps, options, noise=Noise(seed, rows), **more)
    apart = [
        final(denoiser, ids[i : i + 1], scheduler, steps, options, noise=Noise(seed, [row]), **more)
        for i, row in enumerate(rows)
    ]
    return together, torch.cat(apart)


@pytest.mark.parametrize("name", SCHEDULERS)
@given(
    backbone=st.sampled_from(MODELS),
    options=st.sampled_from([*SOFT, dataclasses.replace(SOFT[3], ends=(11, 2), stop=True, suppress_ends=2)]),
    steps=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@few(max_examples=3)
def test_a_text_does_not_depend_on_its_batch(name, backbone, options, steps, seed):
    together, apart = together_and_apart(name, backbone, options, steps, seed)
    assert torch.equal(together, apart)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_text_in_blocks_does_not_depend_on_its_batch(name):
    """A row that is done with a block early waits for the others: without drawing, and without hearing more."""
    for backbone, options in zip(MODELS, SOFT[:2], strict=True):
        together, apart = together_and_apart(name, backbone, options, 12, 1, batch=2, blocks=blocks_of(2, 14, 4, 12))
        assert torch.equal(together, apart)
