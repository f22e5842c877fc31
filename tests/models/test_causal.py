"""Any bidirectional `transformers` model as a denoiser, and back to a folder."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import smdiff
from smdiff.data.tokenizers import bytes_tokenizer
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError
from smdiff.models.cache import BlockCache
from smdiff.models.causal import denoiser_config, load_causal
from smdiff.models.denoiser import Denoiser
from smdiff.models.weights import read_object
from tests.conftest import reference_folder, small_causal

FAMILIES = ["qwen2", "qwen3", "llama", "mistral", "gpt2"]


def folder_of(name, folder, **entries):
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(small_causal(name, 258, 64))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(3)
    backbone.save_pretrained(folder)
    tokenizer = bytes_tokenizer()
    tokenizer.save_pretrained(folder)
    raw = read_object(folder / "config.json") | {"is_causal": False, "shifted_logits": True}
    raw |= {"mask_token_id": tokenizer.mask_token_id} | entries
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shift", [True, False])
def test_any_bidirectional_model_is_a_denoiser(tmp_path, name, shift):
    model = smdiff.load(str(folder_of(name, tmp_path, shifted_logits=shift)))
    denoiser, ids = model.denoiser, torch.arange(3, 15).view(1, 12)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, [0, 4, 11]] = True
    with torch.no_grad():
        ours = denoiser.predict(ids, where)
        full = denoiser.backbone(input_ids=ids, use_cache=False).logits[0]
        source = torch.tensor([0, 3, 10] if shift else [0, 4, 11])
        allowed = [i for i in range(258) if i not in denoiser.forbidden.tolist()]
        torch.testing.assert_close(ours[:, allowed], full[source][:, allowed], atol=2e-5, rtol=1e-5)
        assert (ours.softmax(-1)[:, denoiser.forbidden] == 0).all()
        # It sees what comes later, also through a cache.
        changed = ids.clone()
        changed[0, 9] = 200
        assert not torch.equal(denoiser.predict(changed, where)[1], ours[1])
        cached = denoiser.predict(ids, where, cache=BlockCache())
        torch.testing.assert_close(cached, ours, atol=2e-5, rtol=1e-5)


def test_a_denoiser_comes_back_from_its_folder(tmp_path):
    model = smdiff.load(str(folder_of("qwen2", tmp_path)))
    again = tmp_path / "again"
    soft = model.denoiser.with_soft_mask(SoftMask(2, w_s=0.4))
    soft.save(again)
    model.tokenizer.save_pretrained(again)
    loaded = smdiff.load(str(again)).denoiser
    ids = torch.arange(3, 15).view(1, 12)
    where = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(loaded.predict(ids, where), model.denoiser.predict(ids, where))
    assert loaded.shift
    assert loaded.soft_mask.values() == soft.soft_mask.values()


def test_a_llada_is_saved_as_the_llama_that_it_is(golden, tmp_path):
    (tmp_path / "theirs").mkdir()
    folder = reference_folder(golden, tmp_path / "theirs", "llada_weights", "llada")
    backbone, shift = load_causal(folder, read_object(folder / "config.json"), torch.float32)
    Denoiser(backbone, 200, shift=shift).save(tmp_path / "ours")
    raw = read_object(tmp_path / "ours" / "config.json")
    assert raw["model_type"] == "llama"
    again, still = load_causal(tmp_path / "ours", raw, torch.float32)
    assert still is shift is False
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, backbone(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"is_causal": None}, "is a causal model"),
        ({"mask_token_id": None}, "names no mask token"),
        ({"shifted_logits": None}, "shifted_logits"),
        ({"model_type": "nonsense"}, "cannot be used"),
        ({"final_logit_softcapping": 30.0}, "not supported"),
        ({"num_hidden_layers": 3, "layer_types": None}, "is missing"),
        ({"num_hidden_layers": 1, "layer_types": None}, "not part of the model"),
        ({"num_hidden_layers": 3}, "cannot be used"),
        ({"intermediate_size": 32}, "has another shape"),
        ({"vocab_size": 100}, "has another shape"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, entries, said):
    folder = folder_of("qwen2", tmp_path)
    raw = read_object(folder / "config.json") | entries
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(UserError, match=said):
        smdiff.load(str(folder))


def test_broken_weights_are_refused(tmp_path):
    folder = folder_of("qwen2", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot load"):
        smdiff.load(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match="cannot load"):
        smdiff.load(str(folder))


def test_the_real_configurations_are_read(shared):
    dream, llada = (
        denoiser_config(name, read_object(shared / "data/configs" / name / "config.json"))
        for name in ("dream-v0-instruct-7b", "llada-8b-instruct")
    )
    assert (dream.model_type, dream.shifted_logits, dream.mask_token_id) == ("qwen2", True, 151666)
    assert dream.rope_parameters["rope_theta"] == 1_000_000
    assert (llada.model_type, llada.shifted_logits, llada.mask_token_id) == ("llama", False, 126336)
    assert (llada.vocab_size, llada.intermediate_size, llada.rope_parameters["rope_theta"]) == (126464, 12288, 500_000)


@pytest.mark.parametrize("name", ["dream-v0-instruct-7b", "llada-8b-instruct"])
def test_the_real_tensor_names_are_those_of_the_model(shared, name):
    """On the meta device: every published tensor has its place, and every place its tensor."""
    import re

    from smdiff.models.causal import _LLADA_NAMES

    folder = shared / "data/configs" / name
    config = denoiser_config(name, read_object(folder / "config.json"))
    with torch.device("meta"):
        wanted = set(AutoModelForCausalLM.from_config(config).state_dict())
    published = read_object(folder / "model.safetensors.index.json")["weight_map"]
    found = set()
    for tensor in published:
        renamed = [re.sub(old, new, tensor) for old, new in _LLADA_NAMES.items() if re.match(old, tensor)]
        found.add(renamed[0] if "llada" in name else tensor)
    assert found == wanted
