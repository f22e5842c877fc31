import json
import math
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smdiff.errors import UserError
from smdiff.models.load import build, load, read_checkpoint
from smdiff.models.mdlm import read_pickled_checkpoint
from tests.conftest import small_dit


def mdlm_tensors(dit: torch.nn.Module, heads: int) -> dict[str, torch.Tensor]:
    """A network's weights as MDLM's public checkpoint names them."""
    head_dim = dit.config.hidden_size // heads
    tensors = {f"backbone.{n}": p.detach().clone() for n, p in dit.named_parameters()}
    tensors["backbone.rotary_emb.inv_freq"] = 10_000 ** (-torch.arange(0, head_dim, 2) / head_dim)
    return tensors


def test_dit_logits_match_reference(golden, golden_dit):
    case = golden("dit")
    for ours, name in (
        (golden_dit(case["ids"]), "logits_sigma0"),
        (golden_dit(case["ids"], sigma=torch.zeros(3)), "logits_sigma0"),
        (golden_dit(case["ids"], sigma=case["sigma_nonzero"]), "logits_sigma_nonzero"),
        (golden_dit(inputs_embeds=case["soft_embedding"]), "logits_soft_sparse_sigma0"),
        (golden_dit(inputs_embeds=case["soft_embedding"], sigma=case["sigma_nonzero"]),
         "logits_soft_sparse_sigma_nonzero"),
    ):  # fmt: skip
        torch.testing.assert_close(ours, case[name], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        golden_dit.condition(case["sigma_nonzero"]), case["cond_sigma_nonzero"], atol=1e-5, rtol=0
    )
    blocks, golden_dit.blocks = golden_dit.blocks, golden_dit.blocks[:1]
    first = golden_dit.encode(golden_dit.vocab_embed(case["ids"]))
    torch.testing.assert_close(first, case["block0_out_sigma0"], atol=1e-4, rtol=0)
    golden_dit.blocks = blocks
    table = golden_dit.vocab_embed.embedding
    sparse = (table[case["soft_indices"]] * case["soft_probs"][..., None]).sum(2)
    torch.testing.assert_close(sparse, case["soft_embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(case["soft_dense"] @ table, case["soft_embedding"], atol=1e-5, rtol=0)
    hidden = golden_dit.encode(golden_dit.vocab_embed(case["ids"]))
    subs = golden_dit.decode(hidden, forbidden=torch.tensor([case.info["config"]["mask_id"]])).softmax(-1)
    masked = case["ids"] == case.info["config"]["mask_id"]
    torch.testing.assert_close(subs[masked], case["logp_subs_sigma0"].exp()[masked], atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", "folder"])
def test_mdlm_checkpoint_gives_golden_logits(golden, golden_dit, tmp_path, suffix):
    case, config = golden("dit"), golden("dit_weights").info["config"]
    tensors = {f"backbone.{n}": x for n, x in golden("dit_weights").tensors.items()}
    if suffix == ".ckpt":
        path = tmp_path / "mdlm.ckpt"
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(tensors, path)
        path = tmp_path if suffix == "folder" else path
    denoiser = build(read_checkpoint(str(path))).eval()
    assert denoiser.backbone.config.num_attention_heads == config["heads"]
    assert denoiser.mask_id == config["mask_id"]
    torch.testing.assert_close(denoiser.backbone(case["ids"]), case["logits_sigma0"], atol=1e-4, rtol=0)


class Dangerous:
    """Runs a command when it is unpickled by an unsafe reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    dit, trap = small_dit(), tmp_path / "executed"
    tensors = mdlm_tensors(dit, heads=2)
    torch.save({"state_dict": tensors, "hyper_parameters": {"config": Dangerous(trap)}}, tmp_path / "m.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "m.ckpt", weights_only=True)
    loaded = read_checkpoint(str(tmp_path / "m.ckpt"))
    assert not trap.exists()
    assert torch.equal(loaded.tensors["blocks.0.attn_qkv.weight"], tensors["backbone.blocks.0.attn_qkv.weight"])
    torch.load(tmp_path / "m.ckpt", weights_only=False)
    assert trap.exists(), "the trap must work, or the test shows nothing"


def test_averaged_weights_of_a_lightning_checkpoint_win(tmp_path):
    dit = small_dit()
    averaged = [p.detach() + 1 for p in dit.parameters()]
    torch.save({"state_dict": mdlm_tensors(dit, 2), "ema": {"shadow_params": averaged[1:]}}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="averaged weights"):
        read_checkpoint(str(tmp_path / "x.ckpt"))
    checkpoint = {"state_dict": mdlm_tensors(dit, 2), "ema": {"decay": 0.9999, "shadow_params": averaged}}
    torch.save(checkpoint, tmp_path / "m.ckpt")
    loaded = read_checkpoint(str(tmp_path / "m.ckpt")).tensors
    for (name, _), expected in zip(dit.named_parameters(), averaged, strict=True):
        assert torch.equal(loaded[name], expected)


def test_scalars_of_the_papers_checkpoints_are_read(tmp_path):
    head = {"raw_scale": 0.4, "raw_steep": 2.0, "raw_centre_neg": -0.3, "raw_temperature": 0.5}
    tensors = mdlm_tensors(small_dit(), 2) | {f"tran_head.{n}": torch.tensor(x) for n, x in head.items()}
    save_file(tensors, tmp_path / "m.safetensors")
    soft_mask = build(read_checkpoint(str(tmp_path / "m.safetensors"))).soft_mask
    assert soft_mask.values()["w_s"] == pytest.approx(1 / (1 + math.exp(-0.4)))
    assert soft_mask.values()["w_a"] == pytest.approx(math.log(1 + math.exp(2.0)), abs=1e-5)
    assert soft_mask.values()["w_b"] == pytest.approx(-math.log(1 + math.exp(-0.3)), abs=1e-5)


def test_bare_weights_need_a_tokenizer_that_fits(tmp_path, shared):
    save_file(mdlm_tensors(small_dit(vocab_size=50258), 2), tmp_path / "m.safetensors")
    save_file(mdlm_tensors(small_dit(vocab_size=99), 2), tmp_path / "n.safetensors")
    gpt2 = str(shared / "data/tokenizers/gpt2")
    denoiser, tokenizer, _ = load(str(tmp_path / "m.safetensors"), gpt2)
    assert denoiser.mask_id == tokenizer.mask_token_id == 50257
    with pytest.raises(UserError, match="carries no tokenizer.*--tokenizer"):
        load(str(tmp_path / "m.safetensors"))
    with pytest.raises(UserError, match="50258 ids.*the model has 99"):
        load(str(tmp_path / "n.safetensors"), gpt2)


def test_half_precision_under_autocast(denoiser):
    ids = torch.randint(0, 36, (2, 9))
    masked = torch.rand(2, 9) < 0.6
    with torch.autocast("cpu", torch.bfloat16):
        logits = denoiser.predict(ids.masked_fill(masked, 36), masked)
        soft = denoiser.predict(ids.masked_fill(masked, 36), masked, denoiser.soft_mask.observe(logits))
    soft[:, :36].float().sum().backward()
    expected = denoiser.predict(ids.masked_fill(masked, 36), masked)
    torch.testing.assert_close(logits[:, :36].float(), expected[:, :36], atol=0.2, rtol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters() if p.grad is not None)


def damaged(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "backbone.blocks.1.mlp.0.weight"
    if how == "missing":
        del tensors[name]
    elif how == "extra":
        tensors["backbone.blocks.1.mlp.9.weight"] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:-1]
    return tensors


@pytest.mark.parametrize(
    ("how", "says"), [("missing", "is missing"), ("extra", "not part"), ("shape", r"\(127, 32\), expected \(128, 32\)")]
)
def test_every_tensor_is_checked_by_name(tmp_path, how, says):
    save_file(damaged(mdlm_tensors(small_dit(), 2), how), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=rf"blocks\.1\.mlp\.[09]\.weight.*{says}"):
        build(read_checkpoint(str(tmp_path / "m.safetensors")))


def test_unreadable_files_are_refused_with_one_line(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file(mdlm_tensors(small_dit(), 2), whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:5000])
    noise = tmp_path / "noise.ckpt"
    noise.write_bytes(b"not a checkpoint")
    broken_zip = tmp_path / "broken.ckpt"
    torch.save({"state_dict": {}}, broken_zip)
    empty = tmp_path / "empty"
    empty.mkdir()
    unrelated = tmp_path / "unrelated.safetensors"
    save_file({"wte.weight": torch.zeros(3)}, unrelated)
    for path in (cut, noise, broken_zip, empty, unrelated, tmp_path / "nothing"):
        with pytest.raises(UserError) as error:
            read_checkpoint(str(path))
        assert "\n" not in str(error.value)
        assert path.name in str(error.value)


def test_heads_must_agree_with_the_rotary_frequencies(tmp_path):
    tensors = mdlm_tensors(small_dit(), 2)
    save_file(tensors, tmp_path / "m.safetensors")
    assert read_checkpoint(str(tmp_path / "m.safetensors"), heads=2).shape.num_attention_heads == 2
    with pytest.raises(UserError, match="2 attention heads"):
        read_checkpoint(str(tmp_path / "m.safetensors"), heads=4)
    del tensors["backbone.rotary_emb.inv_freq"]
    save_file(tensors, tmp_path / "n.safetensors")
    with pytest.raises(UserError, match="--heads"):
        read_checkpoint(str(tmp_path / "n.safetensors"))


def test_a_run_folder_opens_in_plain_transformers(denoiser, tmp_path):
    from transformers import AutoModel

    denoiser.save(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 36, (2, 7))
    torch.testing.assert_close(again(ids), denoiser.backbone(ids), atol=1e-5, rtol=1e-5)
    ours = build(read_checkpoint(str(tmp_path)))
    assert ours.soft_mask.values() == denoiser.soft_mask.values()
    stored = json.loads((tmp_path / "soft_mask.json").read_text())
    assert stored["k"] == 3


def test_pickled_reader_handles_ordered_dicts_and_parameters(tmp_path):
    torch.save(OrderedDict(a=torch.nn.Parameter(torch.ones(2)), b=[1, "x"]), tmp_path / "m.pt")
    loaded = read_pickled_checkpoint(tmp_path / "m.pt")
    assert torch.equal(loaded["a"], torch.ones(2))
    assert loaded["b"] == [1, "x"]


def test_mask_token_is_never_predicted(denoiser):
    ids = torch.full((2, 5), denoiser.mask_id)
    logits = denoiser.predict(ids, ids == denoiser.mask_id)
    assert logits.shape == (10, 37)
    assert (logits.softmax(-1)[:, denoiser.mask_id] == 0).all()
    assert torch.isfinite(logits[:, : denoiser.mask_id]).all()


def test_logits_are_computed_at_masked_positions_only(denoiser):
    shapes = []
    original = denoiser.backbone.decode
    denoiser.backbone.decode = lambda h, *rest, **kwargs: shapes.append(h.shape) or original(h, *rest, **kwargs)
    masked = torch.zeros(2, 9, dtype=torch.bool)
    masked[0, 3] = masked[1, 7] = True
    ids = torch.randint(0, 36, (2, 9))
    everywhere = denoiser.backbone(ids.masked_fill(masked, 36))
    shapes.clear()
    logits = denoiser.predict(ids.masked_fill(masked, 36), masked)
    assert shapes == [(2, 32)]
    torch.testing.assert_close(logits[:, :36], everywhere[masked][:, :36], atol=1e-5, rtol=1e-5)
