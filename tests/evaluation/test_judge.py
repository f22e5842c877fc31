"""What a causal model says of texts, against the model asked directly; and what is measured on them."""

import json
import math
import random
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from smdiff.data.tokenizers import bytes_tokenizer
from smdiff.errors import UserError
from smdiff.evaluation.judge import Judge
from smdiff.evaluation.measures import distinct, mauve, unigram_entropy
from smdiff.evaluation.text import elbo
from smdiff.models.denoiser import Denoiser
from tests.conftest import small_dit


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def stories(shared):
    return str(shared / "data" / "models" / "stories260k")


@pytest.fixture(scope="module")
def real(shared):
    return [s for s in (shared / "data" / "text" / "stories.txt").read_text().split("\n\n") if s.strip()]


def test_nll_is_the_models_own_loss_on_the_same_ids(stories, real):
    texts = [real[0][:100], real[1][:900], "a", ""]
    total, count = Judge(stories).nll(texts)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stories).eval(), AutoTokenizer.from_pretrained(stories)
    for i, text in enumerate(texts[:3]):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        assert count[i] == ids.shape[1] - 1
        assert float(total[i] / count[i]) == pytest.approx(float(loss), abs=1e-4)
    assert (float(total[3]), int(count[3])) == (0, 0)  # nothing but the begin-of-text


def test_long_texts_are_read_whole_each_token_once(stories, real):
    judge, text = Judge(stories), "\n\n".join(real[:12])
    ids = judge._tokens(text)
    assert len(ids) > 4 * 512
    total, count = judge.nll([text])
    assert int(count[0]) == len(ids) - 1
    model, plain = AutoModelForCausalLM.from_pretrained(stories).eval(), 0.0
    with torch.no_grad():
        logits = model(torch.tensor([ids[:512]])).logits[0]
        plain += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:513]), reduction="sum"))
        begin = 256
        while begin + 257 < len(ids):  # the later half of each window
            window = ids[begin : begin + 513]
            logits = model(torch.tensor([window[:-1]])).logits[0]
            nll = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="none")
            plain += float(nll[256:].sum())
            begin += 256
    assert float(total[0]) == pytest.approx(plain, rel=1e-5)


def test_batches_change_nothing(stories, real, monkeypatch):
    together = Judge(stories).nll(real[:20])[0]
    monkeypatch.setattr("smdiff.evaluation.judge._LOGITS_AT_ONCE", {True: 1, False: 1})
    torch.testing.assert_close(together, Judge(stories).nll(real[:20])[0], rtol=1e-5, atol=0)


def test_features_are_the_last_tokens_states_and_are_kept(stories, real, monkeypatch):
    judge = Judge(stories)
    found = judge.features([real[0], "short", ""])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stories).eval(), AutoTokenizer.from_pretrained(stories)
    for text, row in zip((real[0], "short"), found, strict=False):
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :512]
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(row, hidden.numpy(), atol=1e-4)
    again = Judge(stories)
    monkeypatch.setattr(again, "_outputs", None)  # would fail if it were asked
    np.testing.assert_array_equal(again.features([real[0], "short", ""]), found)


def ar_run(folder, seed=0):
    tokenizer = bytes_tokenizer()
    dit = small_dit(len(tokenizer), seed=seed, is_causal=True, max_position_embeddings=32)
    Denoiser(dit, tokenizer.mask_token_id).save(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_an_autoregressive_dit_judges_as_it_is_scored(tmp_path):
    judge = Judge(ar_run(tmp_path / "ar"))
    x = torch.randint(97, 123, (3, 32))
    texts = [bytes(row).decode() for row in x.tolist()]
    ids = torch.tensor(bytes_tokenizer()(texts)["input_ids"])
    exact = elbo(judge._denoiser, ids).bound
    total, count = judge.nll([*texts, texts[0][:5]])
    assert count.tolist() == [32, 32, 32, 5]
    torch.testing.assert_close(total[:3] / 32, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt", "both"])
def test_a_judge_without_vocabulary_is_refused(shared, tmp_path, missing):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1)).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        if missing not in (name, "both"):
            shutil.copy(shared / "data" / "tokenizers" / "gpt2" / name, tmp_path)
    with pytest.raises(UserError, match="cannot judge") as error:
        Judge(str(tmp_path))
    assert f"vocab.json and merges.txt, into {tmp_path}" in error.value.fix


def test_a_gguf_judge_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "judge.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("smdiff.models.adapt.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        Judge(str(tmp_path / "judge.gguf"))


def test_a_model_that_fills_masks_cannot_judge(tmp_path):
    tokenizer = bytes_tokenizer()
    Denoiser(small_dit(len(tokenizer)), tokenizer.mask_token_id).save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="it fills masks"):
        Judge(str(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 9}))
    with pytest.raises(UserError, match="cannot judge"):
        Judge(str(tmp_path / "other"))


def test_entropy_and_distinct_n_see_repetition():
    assert unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert unigram_entropy([7] * 9) == 0
    assert distinct([1, 2, 1, 2, 1], 2) == 0.5
    assert distinct([1, 2, 3], 1) == 1
    assert math.isnan(distinct([1], 2))


def test_mauve_is_mauve_texts_own_and_tells_real_text_from_shuffled_words(stories, real):
    compute = pytest.importorskip("mauve").compute_mauve
    judge, generator = Judge(stories), random.Random(0)
    texts = [text[:400] for text in real[:600]]
    shuffled = [" ".join(generator.sample(words, len(words))) for words in map(str.split, texts[:300])]
    first, second, other = (judge.features(x) for x in (texts[:300], texts[300:], shuffled))
    same, apart = mauve(first, second, 3), mauve(other, second, 3)
    assert same.mean > 0.95
    assert apart.mean < 0.3
    assert mauve(first, first, 1).mean > 0.999
    assert same.spread > 0
    assert same.clusters == 30
    theirs = [compute(p_features=second, q_features=first, num_buckets="auto", seed=seed).mauve for seed in range(3)]
    assert same.mean == pytest.approx(np.mean(theirs), abs=1e-12)
    assert same.spread == pytest.approx(np.std(theirs, ddof=1), abs=1e-12)
    few = mauve(first[:20], second, 1, clusters=50)
    assert (few.clusters, "50 are more than the 20 texts" in few.note) == (2, True)
    with pytest.raises(UserError, match="two sets"):
        mauve(first[:1], second, 1)
