"""From a causal model, a Dream, a LLaDA or a run to an adapter or new weights, and back."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import smdiff
from smdiff.cli import main
from smdiff.config import FinetuneConfig, resolve
from smdiff.data.tokenizers import END, bytes_tokenizer
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError
from smdiff.models import denoiser as denoiser_module
from smdiff.models.adapt import Adaptation
from smdiff.models.causal import denoiser_config
from smdiff.models.denoiser import Denoiser
from smdiff.models.load import load, merged, open_base
from smdiff.training.finetune import finetune
from smdiff.training.trainer import SoftMaskTrainer
from tests.conftest import reference_folder, small_causal, small_dit

FAMILIES = ["llama", "llama-untied", "qwen2", "qwen3", "gpt2"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def causal_folder(folder, name="llama", template=TEMPLATE):
    """An ordinary causal model as its authors would publish it, with a tokenizer that knows no mask."""
    torch.manual_seed(0)
    untied = {"tie_word_embeddings": False} if name.endswith("-untied") else {}
    config = small_causal(name.removesuffix("-untied"), 257, **untied)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    backend = bytes_tokenizer().backend_tokenizer
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] == END]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=type(backend).from_str(json.dumps(state)), eos_token=END)
    assert len(tokenizer) == 257
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(tmp_path):
    return causal_folder(tmp_path / "model")


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"add {i}"},
                {"role": "assistant", "content": f"{i + 1} " * (i % 5 + 1)},
            ]
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QUICK = {"max_length": 64, "batch_size": 4, "steps": 4, "eval_every": 2, "eval_sequences": 4, "save_every": 2}


def tune(model, data, out, **options):
    flags = {**QUICK, "model": str(model), "data": str(data), "out": str(out), **options}
    return finetune(resolve(FinetuneConfig, {**flags, "lr": options.get("lr", 1e-2)}))


def inputs(loaded):
    ids = torch.arange(3, 27).view(2, 12) % 250
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, [0, 4, 11]] = True
    return ids.masked_fill(where, loaded.denoiser.mask_id), where


@torch.no_grad()
def both_passes(loaded):
    """Logits of a plain pass, and of a soft-masked one after it."""
    ids, where = inputs(loaded)
    first = loaded.denoiser.predict(ids, where)
    if loaded.denoiser.soft_mask is None:
        return [first]
    return [first, loaded.denoiser.predict(ids, where, loaded.denoiser.soft_mask.observe(first))]


def same(one, other, **tolerance):
    for a, b in zip(both_passes(one), both_passes(other), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_causal_model_becomes_a_denoiser(tmp_path, name):
    folder = causal_folder(tmp_path, name)
    (denoiser, tokenizer, _) = open_base(str(folder), None, torch.float32, adaptation=Adaptation())
    original = AutoModelForCausalLM.from_pretrained(folder)
    old, table = original.get_input_embeddings().weight, denoiser.table
    assert (denoiser.mask_id, tokenizer.mask_token_id, len(table)) == (257, 257, 320)
    torch.testing.assert_close(table[:257], old)
    torch.testing.assert_close(table[257:], old.mean(0).expand(63, -1))
    assert denoiser.forbidden.tolist() == list(range(257, 320))
    assert denoiser.shift
    assert denoiser.backbone.config.is_causal is False
    ids = torch.arange(3, 15)[None]
    where = torch.ones_like(ids, dtype=torch.bool)
    changed = ids.clone()
    changed[0, -1] = 200
    with torch.no_grad():
        assert not torch.equal(denoiser.predict(ids, where)[0], denoiser.predict(changed, where)[0])
        # Where nothing lies ahead it is the causal model still: the last output predicts what comes next.
        alone = denoiser.predict(ids[:, :2], torch.tensor([[False, True]]))
        causal = original(ids[:, :1]).logits[0, 0]
        # ... but for what the second position tells the first, so only a model of one token is exactly the same.
        single = denoiser.logits(denoiser.hidden(ids[:, :1], torch.tensor([[True]])))[0, :257]
    torch.testing.assert_close(single, causal, atol=1e-5, rtol=1e-5)
    assert alone.shape == (1, 320)


def test_the_mask_can_be_a_token_that_is_there_or_an_unused_id(tmp_path):
    folder = causal_folder(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    named = open_base(str(folder), None, torch.float32, adaptation=Adaptation(mask_token="z", shift=False))
    assert named.denoiser.mask_id == tokenizer.convert_tokens_to_ids("z")
    assert not named.denoiser.shift
    old = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    torch.testing.assert_close(named.denoiser.table, old)  # it keeps its embedding
    with pytest.raises(UserError, match="no such token"):
        open_base(str(folder), None, torch.float32, adaptation=Adaptation(mask_token="<nope>"))
    wide = tmp_path / "wide"
    causal_folder(wide)
    AutoModelForCausalLM.from_config(small_causal("llama", 300)).save_pretrained(wide)
    unused = open_base(str(wide), None, torch.float32, adaptation=Adaptation())
    assert (unused.denoiser.mask_id, len(unused.denoiser.table)) == (257, 300)
    torch.testing.assert_close(unused.denoiser.table[257], unused.denoiser.table[:257].mean(0))


def test_a_model_that_cannot_look_ahead_is_refused(tmp_path):
    from transformers import MambaConfig

    folder = causal_folder(tmp_path)
    config = MambaConfig(vocab_size=257, hidden_size=32, num_hidden_layers=1, state_size=4)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(UserError, match="to the left only"):
        open_base(str(folder), None, torch.float32, adaptation=Adaptation())


@pytest.mark.parametrize("kind", ["dora", "lora"])
@pytest.mark.parametrize("name", ["llama", "llama-untied", "gpt2"])
def test_adapter_comes_back_merges_and_opens_in_plain_peft(tmp_path, chats, kind, name):
    base, run = causal_folder(tmp_path / "base", name), tmp_path / "run"
    result = tune(base, chats, run, adapter=kind, k=2, merge=True, best=False)
    assert result["train"]["steps"] == 4
    assert {p.name for p in run.iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "soft_mask.json", "tokenizer.json", "config.json",
        "result.json", "curves.png", "merged",
    }  # fmt: skip
    tuned = load(str(run))
    fresh = open_base(str(base), None, torch.float32, adaptation=Adaptation())
    ids, where = inputs(tuned)
    assert not torch.allclose(tuned.denoiser.predict(ids, where), fresh.denoiser.predict(ids, where), atol=1e-3)
    assert tuned.denoiser.soft_mask.k == 2
    assert not torch.equal(tuned.denoiser.mask_row, fresh.denoiser.table[257])  # the mask's row was trained
    torch.testing.assert_close(tuned.denoiser.table, fresh.denoiser.table)  # and no other
    same(load(str(run / "merged")), tuned, atol=1e-4, rtol=1e-4)

    # What README says of plain transformers and peft.
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.config.is_causal = False
    plain.resize_token_embeddings(tuned.denoiser.vocab_size, mean_resizing=False)
    plain = PeftModel.from_pretrained(plain, run).eval()
    with torch.no_grad():
        logits = plain(input_ids=ids, use_cache=False).logits
        ours = tuned.denoiser.predict(ids, where)
    source = [(b, max(c - 1, 0)) for b, c in where.nonzero().tolist()]
    theirs = torch.stack([logits[b, c] for b, c in source])
    torch.testing.assert_close(ours[:, :257], theirs[:, :257], atol=1e-4, rtol=1e-4)


def test_training_lowers_the_loss_and_touches_only_what_it_says(tmp_path, model, chats):
    result = tune(model, chats, tmp_path / "run", steps=60, eval_every=20, save_every=100, w_b=-6.0)
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [r["valid_nll"] for r in log if "valid_nll" in r]
    assert held_out[-1] < held_out[0]
    assert result["soft_mask"]["w_s"] != pytest.approx(0.3)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["use_dora"]
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    size = sum(x.numel() for x in load_file(tmp_path / "run" / "adapter_model.safetensors").values())
    assert size < 10_000


def test_trained_row_blends_as_if_it_were_in_the_table(tmp_path, model, chats):
    for k in (2, 0):
        run = tmp_path / f"run-{k}"
        tune(model, chats, run, k=k, w_s=0.7, steps=2, save_every=5, best=False)
        tuned = load(str(run))
        ids, where = inputs(tuned)
        d = tuned.denoiser
        feedback = d.soft_mask.observe(d.predict(ids, where))
        table = d.table.clone()
        table[d.mask_id] = d.mask_row
        expected = d.soft_mask.embed(ids, where, feedback, table)
        torch.testing.assert_close(d.embed(ids, where, feedback), expected, atol=1e-6, rtol=1e-5)


def test_all_weights_and_a_continuation(tmp_path, model, chats):
    """Full weights, then an adapter on them, then the adapter continued, then all weights from the adapter."""
    tune(model, chats, tmp_path / "full", adapter="none", soft_mask=False, best=False)
    full = load(str(tmp_path / "full"))
    assert full.denoiser.adapter is None
    assert full.denoiser.soft_mask is None
    tune(tmp_path / "full", chats, tmp_path / "soft", best=False)
    soft = load(str(tmp_path / "soft"))
    assert soft.denoiser.mask_row is None  # it was trained already
    tune(tmp_path / "soft", chats, tmp_path / "more", best=False)
    more = load(str(tmp_path / "more"))
    assert json.loads((tmp_path / "more" / "run.json").read_text())["generation"] == 3
    base = json.loads((tmp_path / "more" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tmp_path / "full")
    assert not torch.equal(both_passes(more)[1], both_passes(soft)[1])
    with pytest.raises(UserError, match="rank 16 -> 4"):
        tune(tmp_path / "soft", chats, tmp_path / "other", rank=4)
    tune(tmp_path / "soft", chats, tmp_path / "whole", adapter="none", steps=1, lr=1e-9, best=False)
    same(load(str(tmp_path / "whole")), soft, atol=1e-4, rtol=1e-4)


def test_best_weights_are_delivered(tmp_path, model, chats, monkeypatch):
    """A run that climbs its loss: the first look is the best."""
    loss = SoftMaskTrainer.compute_loss
    monkeypatch.setattr(SoftMaskTrainer, "compute_loss", lambda *a, **k: -loss(*a, **k))
    result = tune(model, chats, tmp_path / "run", steps=6, lr=0.01, warmup=0, schedule="constant")
    log = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    looks = {r["step"]: r["valid_nll"] for r in log if "valid_nll" in r}
    best = min(looks, key=looks.get)
    assert best < 6
    assert result["train"]["delivered_step"] == best
    assert result["valid"]["nll"] == pytest.approx(looks[best], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"adapter": "none", "ema": 0.9}, {"ema": 0.9, "objective": "code"}], ids=str)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, model, chats, options):
    tune(model, chats, tmp_path / "whole", steps=6, **options)
    tune(model, chats, tmp_path / "cut", steps=6, keep=9, **options)
    cut = tmp_path / "cut"
    for name in ("checkpoint-4", "checkpoint-6", "best"):
        shutil.rmtree(cut / "checkpoints" / name)
    for path in [cut / "result.json", *cut.glob("*.safetensors"), cut / "config.json", *cut.glob("adapter*")]:
        path.unlink(missing_ok=True)
    unfinished = load(str(cut))
    assert "not finished" in unfinished.note
    tune(model, chats, cut, steps=6, keep=9, **options)
    for a, b in zip(both_passes(load(str(tmp_path / "whole"))), both_passes(load(str(cut))), strict=True):
        assert torch.equal(a, b)


def test_micro_batches_do_not_change_the_elbo(tmp_path, model, chats):
    """Rows of different lengths: a mean of micro-batch means would weigh their tokens differently."""
    tune(model, chats, tmp_path / "one", accumulation=1, p_sm=1.0, pad_policy="ignore", best=False)
    tune(model, chats, tmp_path / "four", accumulation=4, p_sm=1.0, pad_policy="ignore", best=False)
    same(load(str(tmp_path / "one")), load(str(tmp_path / "four")), atol=2e-4, rtol=2e-4)


def test_micro_batches_of_the_code_objective_are_averaged(tmp_path, model, chats):
    """The reference sums where it means to average (TRAPS 22): the first step's loss would be four times as large."""
    first = []
    for accumulation in (1, 4):
        run = tmp_path / str(accumulation)
        tune(model, chats, run, objective="code", accumulation=accumulation, steps=1, log_every=1, p_sm=0.0)
        first.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert first[1] == pytest.approx(first[0], rel=0.6)
    assert first[0] == pytest.approx(5.6 / 0.5, rel=0.6)  # log V over t


def test_gradient_checkpointing_changes_nothing(tmp_path, model, chats):
    for name, on in (("plain", False), ("less", True)):
        tune(model, chats, tmp_path / name, gradient_checkpointing=on, best=False)
    same(load(str(tmp_path / "plain")), load(str(tmp_path / "less")), atol=1e-5, rtol=1e-5)


def test_chunked_scores_are_the_same(monkeypatch):
    """Few rows of logits at a time: the same values and gradients."""
    torch.manual_seed(0)
    found = []
    for at_once in (2**26, 64):
        for name in ("_LOGITS_AT_ONCE", "_KEPT_LOGITS"):
            monkeypatch.setattr(denoiser_module, name, {True: at_once, False: at_once})
        denoiser = Denoiser(small_dit(), 36, SoftMask(k=3, w_s=0.5))
        ids = torch.arange(24).view(2, 12)
        where = torch.ones_like(ids, dtype=torch.bool)
        feedback = denoiser(ids, where, observe=True).feedback
        nll = denoiser(ids, where, feedback, targets=ids.flatten()).nll
        nll.sum().backward()
        found.append((nll.detach(), feedback.logits.detach(), denoiser.backbone.blocks[0].attn_qkv.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_dream_and_its_tokenizer_all_the_way(shared, tmp_path):
    """The real config.json at reduced width, sharded weights, the real tokenizer: finetune, sample, merge, reload."""
    base = tmp_path / "dream"
    raw = json.loads((shared / "data/configs/dream-v0-instruct-7b/config.json").read_text())
    raw |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_window_layers": 2}
    raw |= {"num_attention_heads": 2, "num_key_value_heads": 1, "torch_dtype": "float32"}
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(denoiser_config("dream", raw), dtype=torch.float32)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(4)  # predictions far enough apart for rounding not to matter
    backbone.save_pretrained(base, max_shard_size="4MB")
    assert len(list(base.glob("model-*.safetensors"))) > 2
    for file in (shared / "data/tokenizers/dream").iterdir():
        shutil.copy(file, base / file.name)
    (base / "config.json").write_text(json.dumps(raw))
    run = tmp_path / "run"
    data = shared / "data/sft/mbpp_train_messages.jsonl"
    recipe = {
        "objective": "code",
        "k": 1,
        "p_sm": 0.5,
        "accumulation": 2,
        "batch_size": 2,
        "steps": 2,
        "max_length": 200,
    }
    tune(base, data, run, **recipe, eval_sequences=2, merge=True, best=False)
    tuned = load(str(run))
    assert tuned.denoiser.shift
    assert tuned.denoiser.mask_row is None  # Dream knows its mask
    assert tuned.denoiser.mask_id == 151666
    whole = load(str(run / "merged"))
    same(whole, tuned, atol=1e-4, rtol=1e-4)
    config = smdiff.SampleConfig(
        scheduler="entropy", temperature=0, steps=3, length=6, chat=True, prompt="Sort a list."
    )
    texts = [smdiff.generate(m, config=config)[0].ids for m in (tuned, whole)]
    assert texts[0] == texts[1]

    shard = sorted(base.glob("model-*.safetensors"))[0]
    tensors = load_file(shard)
    name = next(iter(tensors))
    for change, message in (
        ({k: v for k, v in tensors.items() if k != name}, f"{name} is missing"),
        (tensors | {"extra.weight": torch.zeros(1)}, "extra.weight is not part"),
        (tensors | {name: torch.zeros(3, 3)}, f"{name} has another shape"),
    ):
        save_file(change, shard, metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            load(str(run))
    shard.write_bytes(shard.read_bytes()[:1000])  # an interrupted download
    with pytest.raises(UserError, match="the base of the adapter"):
        load(str(run))
    shard.unlink()
    with pytest.raises(UserError, match="the base of the adapter"):
        load(str(run))


def test_llada_takes_an_adapter(golden, tmp_path, chats):
    base = tmp_path / "llada"
    base.mkdir()
    reference_folder(golden, base, "llada_weights", "llada")
    raw = json.loads((base / "config.json").read_text())
    assert raw["mask_token_id"] == 200
    words = [{"text": "a b c d e f " * (40 + i)} for i in range(20)]
    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps(w) + "\n" for w in words))
    small = Tokenizer(models.WordLevel({**{c: i for i, c in enumerate("abcdef")}, "[UNK]": 6}, unk_token="[UNK]"))
    small.pre_tokenizer = pre_tokenizers.Whitespace()
    small.add_tokens([f"t{i}" for i in range(193)])
    fast = PreTrainedTokenizerFast(tokenizer_object=small, eos_token="t1", unk_token="[UNK]")
    fast.add_special_tokens({"mask_token": "<mask>"})
    assert fast.mask_token_id == 200
    fast.save_pretrained(base)
    tune(base, data, tmp_path / "run", max_length=16, merge=True, best=False)
    tuned = load(str(tmp_path / "run"))
    assert not tuned.denoiser.shift
    same(load(str(tmp_path / "run" / "merged")), tuned, atol=1e-4, rtol=1e-4)


def test_the_papers_scalars_are_read(tmp_path, model, chats):
    run = tmp_path / "run"
    tune(model, chats, run, best=False)
    (run / "soft_mask.json").unlink()
    theirs = {
        "transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.25, "transparency_centre": -1,
        "transparency_steepness": 5, "mixinputs_k": 1, "mixture_temp": 1.0, "transparency_scheduling": "none",
    }  # fmt: skip
    (run / "transparency_config.json").write_text(json.dumps(theirs))
    soft_mask = load(str(run)).denoiser.soft_mask
    assert soft_mask.k == 1
    assert soft_mask.values() == pytest.approx({"w_s": 0.25, "w_a": 5, "w_b": -1}, rel=1e-5)
    (run / "transparency_config.json").write_text(json.dumps(theirs | {"transparency_alg": "none"}))
    assert load(str(run)).denoiser.soft_mask is None
    (run / "transparency_config.json").write_text(json.dumps(theirs | {"transparency_alg": "new"}))
    with pytest.raises(UserError, match="does not hold the scalars"):
        load(str(run))


def test_an_adapter_that_does_not_fit_is_refused_by_name(tmp_path, model, chats):
    run = tmp_path / "run"
    tune(model, chats, run, best=False)
    weights = run / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if n.endswith("lora_A.weight"))
    for change, message in (
        ({k: v for k, v in tensors.items() if k != name}, f"{name} is missing"),
        (tensors | {"extra.weight": torch.zeros(1)}, "extra.weight is not part"),
        (tensors | {name: torch.zeros(2, 2)}, "expected"),
    ):
        save_file(change, weights)
        with pytest.raises(UserError, match=message):
            load(str(run))
    save_file(tensors, weights)
    AutoModelForCausalLM.from_config(small_causal("llama", 257, hidden_size=48)).save_pretrained(model)
    with pytest.raises(UserError, match="does not fit the model"):
        load(str(run))
    shutil.rmtree(model)
    with pytest.raises(UserError, match="the base of the adapter .*no such file or folder"):
        load(str(run))


def test_merging_leaves_the_denoiser_usable(tmp_path, model, chats):
    tune(model, chats, tmp_path / "run", best=False)
    tuned = load(str(tmp_path / "run"))
    expected = both_passes(tuned)
    whole = tuned._replace(denoiser=merged(tuned.denoiser))
    for a, b in zip(both_passes(whole), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --model"),
        (["--model", "{model}"], "needs --data"),
        (["--model", "{model}", "--data", "/nowhere.jsonl"], "no such file or folder"),
        (["--model", "/nowhere", "--data", "{chats}"], "no model at /nowhere"),
        (["--model", "{model}", "--data", "{chats}", "--targets", "nope"], "no layer is called nope"),
        (["--model", "{model}", "--data", "{chats}", "--max-length", "4"], "--max-length"),
        (["--model", "{model}", "--data", "{chats}", "--max-length", "5000"], "made for 128 tokens"),
        (["--model", "{model}", "--data", "{chats}", "--quantize", "4bit"], "bitsandbytes"),
        (["--model", "{model}", "--data", "{chats}", "--quantize", "4bit", "--adapter", "none"], "4bit"),
        (["--model", "{model}", "--data", "{chats}", "--t-min", "0.9", "--t-max", "0.3"], "above the largest"),
        (["--model", "{model}", "--data", "{chats}", "--preset", "dream"], "dream-sm"),
        (["--model", "{model}", "--data", "{chats}", "--prompt-column", "q", "--response-column", "a"], "messages"),
        (["--model", "{model}", "--data", "{chats}", "--chat-template", "/nowhere.jinja"], "cannot read"),
        (["--model", "{model}", "--data", "{chats}", "--k", "400"], "the vocabulary has 320"),
        (["--model", "{bare}", "--data", "{chats}"], "template"),
        (["--model", "{model}", "--data", "{silent}"], "--skip-bad-rows"),
        (["--model", "{model}", "--data", "{cut}"], "cannot read"),
        (["--model", "{model}.gguf", "--data", "{chats}"], "no model at"),
    ],
)
def test_bad_input_is_one_line(tmp_path, model, chats, capsys, options, message):
    bare = causal_folder(tmp_path / "bare", template=None)
    silent = tmp_path / "silent.jsonl"
    silent.write_text(chats.read_text() + json.dumps({"messages": [{"role": "user", "content": "hello?"}]}) + "\n")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1" + bytes(100))
    values = {"model": model, "chats": chats, "bare": bare, "silent": silent, "cut": cut}
    out = tmp_path / "out"
    code = main(["finetune", *(o.format(**values) for o in options), "--out", str(out), "--steps", "2"])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("smdiff: ")]
    assert code == 2, captured.err
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in captured.err
    assert not out.exists()


def test_plan_counts_what_is_trained(tmp_path, model, chats, capsys):
    args = ["--model", str(model), "--data", str(chats), "--max-length", "64", "--steps", "100", "--json", "--dry-run"]
    assert main(["finetune", *args, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    plan = json.loads(capsys.readouterr().out)
    # Rank 16 on q, k, v, o of two layers, DoRA's magnitudes, the mask's row, three scalars.
    each = [(32, 32), (32, 16), (32, 16), (32, 32)]
    expected = 2 * sum(16 * (i + o) + o for i, o in each) + 32 + 3
    assert plan["trained_parameters"] == expected
    assert plan["forward_passes"] == 180
    assert "GB" in plan["memory"]
    assert plan["time"].startswith("about")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["dream-sm", "dream-coder-sm"])
def test_presets_are_the_recipe(name):
    """Method of arXiv 2510.17206 as its released configurations have it."""
    config = resolve(FinetuneConfig, {"preset": name}).config
    assert (config.adapter, config.rank, config.alpha, config.targets) == (
        "dora",
        16,
        16,
        "q_proj,k_proj,v_proj,o_proj",
    )
    assert (config.lr, config.schedule, config.warmup, config.clip, config.weight_decay) == (1e-5, "cosine", 0.03, 7, 0)
    assert (config.batch_size // config.accumulation, config.accumulation, config.steps) == (1, 8, 33500)
    assert (config.objective, config.times, config.antithetic) == ("code", (0.2, 0.8), False)
    assert (config.soft, config.k, config.p_sm, config.w_s, config.soft_mask_lr) == (True, 1, 0.5, 0.0, 1e-2)
    assert (config.max_length, config.pad_policy, config.extra_pads) == (2048, "learn", 50)
    assert config.model.startswith("Dream-org/Dream")
