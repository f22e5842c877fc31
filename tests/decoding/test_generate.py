"""From prompts to texts: the public interface, on a small run and on a Dream folder with its real tokenizer."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import smdiff
from smdiff.config import ADAPTIVE, REMASKING, SCHEDULER_NAMES, SampleConfig
from smdiff.data.prompts import chat, continuation, end_ids, infill, read_prompts
from smdiff.data.tokenizers import bytes_tokenizer
from smdiff.decoding.generate import write
from smdiff.decoding.schedulers import SCHEDULERS
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError
from smdiff.models.denoiser import Denoiser
from smdiff.models.load import Model
from tests.conftest import small_dit


@pytest.fixture
def model() -> Model:
    """A small soft-masked DiT that writes bytes, up to 64 of them."""
    tokenizer = bytes_tokenizer()
    dit = small_dit(len(tokenizer), max_position_embeddings=64, mask_token_id=tokenizer.mask_token_id)
    return Model(Denoiser(dit, tokenizer.mask_token_id, SoftMask(3, w_s=0.7, w_a=1.0, w_b=-2.0)), tokenizer)


@pytest.fixture(scope="module")
def dream_folder(shared, tmp_path_factory):
    """A Dream as published: its config, tokenizer and vocabulary, over a body small enough for a test."""
    folder = tmp_path_factory.mktemp("dream")
    raw = json.loads((shared / "data/configs/dream-v0-instruct-7b/config.json").read_text())
    raw |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    raw |= {"num_key_value_heads": 2, "torch_dtype": "float32"}
    own = {k: v for k, v in raw.items() if k not in ("model_type", "auto_map", "attn_implementation")}
    own["initializer_range"] = 0.3
    torch.manual_seed(0)
    backbone = Qwen2ForCausalLM(Qwen2Config(**own))
    backbone.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw))
    for file in (shared / "data/tokenizers/dream").iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        smdiff.generate(*arguments)
    return str(error.value)


def test_names_of_schedulers_are_the_registry():
    assert tuple(SCHEDULERS) == SCHEDULER_NAMES
    assert {n for n, kind in SCHEDULERS.items() if kind.adaptive} == set(ADAPTIVE)
    assert {n for n, kind in SCHEDULERS.items() if kind.remasks} == set(REMASKING)


def test_a_continuation_keeps_its_prompt_and_counts_what_it_wrote(model):
    config = SampleConfig(scheduler="entropy", steps=6, length=12, num=2, stop=False, temperature=0.0)
    texts = smdiff.generate(model, ["def f(", "x"], config)
    assert [t.prompt for t in texts] == ["def f(", "def f(", "x", "x"]
    assert all(len(t.ids) == t.new_tokens == 12 and t.kind == "prompt" and t.soft_mask for t in texts)
    assert all(0 < t.confidence <= 1 and t.nfe == 6 for t in texts)
    (alone,) = smdiff.generate(model, "x", dataclasses.replace(config, num=1))
    assert texts[2].ids == texts[3].ids == alone.ids


def test_infilling_writes_the_spans_and_nothing_else(model):
    (text,) = smdiff.generate(model, config=SampleConfig(infill="<mask:3>def f(<mask>):\n<mask:6>end", steps=4))
    assert text.kind == "infill"
    assert text.new_tokens == 10
    assert len(text.ids) == len("def f(" + "):\n" + "end") + 10
    assert bytes_of(model, text.ids[3:9]) == "def f("
    assert bytes_of(model, text.ids[10:13]) == "):\n"
    assert bytes_of(model, text.ids[-3:]) == "end"


def bytes_of(model, ids):
    return model.tokenizer.decode(ids)


def test_a_continuation_ends_at_its_end_of_text(model):
    end = model.tokenizer.eos_token_id
    with torch.no_grad():  # a model that wants to end
        model.denoiser.backbone.output_layer.linear.bias[end] += 6
    config = SampleConfig(scheduler="entropy", steps=16, length=16, temperature=0.0)
    (stopped,) = smdiff.generate(model, "abc", config)
    (whole,) = smdiff.generate(model, "abc", dataclasses.replace(config, stop=False))
    (later,) = smdiff.generate(model, "abc", dataclasses.replace(config, suppress_eos=8))
    assert end not in stopped.ids
    assert end in whole.ids
    assert stopped.ids == whole.ids[: whole.ids.index(end)]
    assert stopped.new_tokens == len(stopped.ids) + 1 < 16
    assert stopped.nfe < whole.nfe
    assert len(later.ids) >= 8


def test_blocks_and_caches_reach_the_loop(model):
    config = SampleConfig(scheduler="threshold", length=32, block_length=8, cache="dual", threshold=0.5, stop=False)
    widths = []
    model.denoiser.backbone.blocks[0].register_forward_hook(lambda _, args, __: widths.append(args[0].shape[1]))
    (text,) = smdiff.generate(model, "def f(", config)
    assert len(widths) == text.nfe
    assert set(widths) == {38, 8}


def test_watchers_see_every_step(model):
    seen = []
    config = SampleConfig(scheduler="entropy", steps=4, length=8, num=2)
    texts = list(write(model, config, watch=seen.extend))
    assert [(f.text, f.step) for f in seen] == [(t, s) for s in range(4) for t in range(2)]
    assert seen[-1].ids == texts[-1].ids
    assert sum(seen[0].masked) == 7  # int(8 (1 - s / t)) = 1
    assert all(len(f.candidates) == sum(f.masked) for f in seen)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 65}, "only 64 tokens"),
        ({"length": 65}, "more than the model's 64"),
        ({"prompt": "x" * 64}, "Shorten it"),
        ({"prompt": "x" * 60, "length": 5}, "At most 4"),
        ({"infill": "no span"}, "no span in it"),
        ({"infill": "a <mask:0> b"}, "between 1 and"),
        ({"infill": "<mask:65>"}, "Shorten it"),
        ({"infill": "<mask:4>", "length": 3}, "the spans say"),
        ({"prompt": "x", "length": 32, "block_length": 5}, "do not divide"),
        ({"prompt": "x", "length": 32, "block_length": 8, "steps": 3}, "4 blocks need a step each"),
        ({"scheduler": "threshold", "steps": 4}, "as many steps as it needs"),
        ({"scheduler": "entropy", "eta": 0.1}, "--eta has no effect"),
        ({"scheduler": "remdm-loop", "t_on": 0.1, "t_off": 0.2}, "before it begins"),
        ({"scheduler": "remdm-loop", "eta": 0.5}, "above its bound"),
        ({"chat": True, "prompt": "hi"}, "no chat template"),
        ({"chat": True}, "nothing to answer"),
        ({"guidance": 1.0}, "no prompt to be guided by"),
        ({"soft_mask": False, "soft_mask_scale": 0.3}, "soft-masking is off"),
        ({"soft_mask_k": 1}, "without scalars"),
    ],
)
def test_what_does_not_fit_is_refused(model, options, said):
    assert said in refused(model, None, SampleConfig(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "entropie"}, "Did you mean 'entropy'?"),
        ({"steps": 0}, "at least 1"),
        ({"cache": "dual"}, "Give --block-length"),
        ({"scheduler": "remdm-cap", "block_length": 8, "cache": "dual"}, "not over blocks or a cache"),
        ({"cache": "dual", "block_length": 8, "guidance": 1.0}, "no cached pass"),
        ({"prompt": "a", "infill": "<mask>"}, "Give one of them"),
        ({"chat": True, "infill": "<mask>"}, "no spans"),
    ],
)
def test_options_that_contradict_each_other_are_refused_at_once(options, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        SampleConfig(**options)


def test_soft_masking_without_scalars_offers_a_scale(model):
    binary = Model(Denoiser(model.denoiser.backbone, model.denoiser.mask_id), model.tokenizer)
    with torch.no_grad():  # predictions that are sure enough to open the gate of the paper's start
        binary.denoiser.backbone.output_layer.linear.weight.mul_(8)
    assert "--soft-mask-scale" in refused(binary, None, SampleConfig(soft_mask=True))
    config = SampleConfig(scheduler="entropy", steps=8, length=16)
    (plain,), (soft,) = (
        smdiff.generate(binary, None, c) for c in (config, dataclasses.replace(config, soft_mask_scale=0.9))
    )
    assert not plain.soft_mask
    assert soft.soft_mask
    assert plain.ids != soft.ids
    assert binary.denoiser.soft_mask is None  # the model itself is as it was


def test_a_published_dream_answers_and_never_writes_what_has_no_token(dream_folder):
    model = smdiff.load(str(dream_folder))
    assert model.denoiser.shift
    assert len(model.denoiser.forbidden) == 398  # 397 ids without a token, and the mask
    assert end_ids(model.tokenizer) == [151643, 151645]  # end of text, and of a turn
    config = SampleConfig(scheduler="entropy", steps=4, length=16, chat=True, temperature=1.0, top_p=1.0, stop=False)
    (text,) = smdiff.generate(model, "Say hello", config)
    assert text.prompt == "Say hello"
    assert all(i < 151667 and i != 151666 for i in text.ids)
    asked = chat(model.tokenizer, [{"role": "user", "content": "Say hello"}])
    assert model.tokenizer.decode(asked.ids).endswith("<|im_start|>assistant\n")


def test_a_tokenizer_that_names_its_own_code_is_opened_without_it(dream_folder, tmp_path, monkeypatch):
    """As on the hub: the class exists in the model's own code only. Nobody is asked whether to run it."""
    folder = shutil.copytree(dream_folder, tmp_path / "dream")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    tokenizer = smdiff.load(str(folder)).tokenizer
    assert (len(tokenizer), tokenizer.mask_token_id, tokenizer.eos_token_id) == (151667, 151666, 151643)
    assert tokenizer.decode(tokenizer("def f(x):\n    return x")["input_ids"]) == "def f(x):\n    return x"


def test_a_prompt_may_not_hold_masks(dream_folder):
    model = smdiff.load(str(dream_folder))
    assert "--infill" in refused(model, "a <|mask|> b", SampleConfig(length=4))


def test_nothing_asked_is_nothing_written(model):
    assert smdiff.generate(model, []) == []
    assert "given twice" in refused(model, "a", SampleConfig(prompt="b"))


def test_a_model_that_was_not_made_a_denoiser_is_refused(shared):
    with pytest.raises(UserError, match="is a causal model"):
        smdiff.load(str(shared / "data/models/stories260k"))


def test_prompt_files(model, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n\n"b"\n{"infill": "c<mask:2>"}\n')
    mask = model.denoiser.mask_id
    prompts = read_prompts(path, model.tokenizer, mask, as_chat=False)
    assert [(p.kind, p.shown) for p in prompts] == [("prompt", "a"), ("prompt", "b"), ("infill", "c<mask:2>")]
    texts = smdiff.generate(model, None, SampleConfig(prompt_file=str(path), length=6, steps=2, stop=False))
    assert [t.new_tokens for t in texts] == [6, 6, 2]
    for line, said in (
        ("{", "line 1, is not JSON"),
        ("3", "neither a string"),
        ('{"prompt": 3}', "neither a string"),
        ("", "no prompt"),
    ):
        path.write_text(line)
        with pytest.raises(UserError, match=said):
            read_prompts(path, model.tokenizer, mask, as_chat=False)


def test_prompts_become_tokens(model):
    tokenizer, mask = model.tokenizer, model.denoiser.mask_id
    assert continuation(tokenizer, "ab").ids == tokenizer("ab")["input_ids"]
    spans = infill(tokenizer, "<mask:2>a<mask>", mask)
    assert spans.ids == [mask, mask, *tokenizer("a")["input_ids"], mask]
    with pytest.raises(UserError, match="empty"):
        continuation(tokenizer, "")
