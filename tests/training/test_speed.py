"""What steps cost, how a run uses the machine, and the options of speed: they change no result."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from smdiff.cli import main
from smdiff.config import PretrainConfig, resolve
from smdiff.diffusion.noise import SCHEDULES, NoiseDraw, draw_step
from smdiff.diffusion.objective import negative_elbo
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError
from smdiff.models.causal import set_attention
from smdiff.models.denoiser import Denoiser
from smdiff.training import speed
from smdiff.training.pretrain import pretrain
from smdiff.training.speed import Cost, choose_compute
from tests.conftest import small_causal, small_dit

NOISE = SCHEDULES["log-linear"]
TINY = {
    "tokenizer": "bytes", "length": 16, "hidden_size": 16, "layers": 1, "heads": 2, "cond_dim": 8, "batch_size": 8,
    "steps": 3, "warmup": 2, "eval_every": 0, "eval_sequences": 8, "save_every": 2, "log_every": 1, "dropout": 0.1,
    "soft_mask": True, "p_sm": 1.0,
}  # fmt: skip


def dit(**shape) -> Denoiser:
    return Denoiser(small_dit(96, **{"cond_dim": 4, **shape}), 95, SoftMask(3, 0.5))


def loss_of(model: Denoiser, two_pass: bool = True) -> torch.Tensor:
    x0 = torch.randint(0, 95, (4, 24), generator=torch.Generator().manual_seed(1))
    noise = draw_step(NOISE, seed=0, step=0, rows=4, length=24)
    return negative_elbo(model, x0, NoiseDraw(noise.t, noise.masked, two_pass), NOISE, model.mask_id).total


@pytest.mark.parametrize("two_pass", [False, True])
def test_flops_of_a_step_are_those_that_torch_counts(two_pass):
    model = dit()
    masked = int(draw_step(NOISE, seed=0, step=0, rows=4, length=24).masked.sum())
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # which it does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model, two_pass).backward()
    expected = Cost.of(model.backbone).step(4 * 24, masked, 24, two_pass)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_an_adapted_network_costs_what_is_trained():
    network = dit().backbone
    whole = Cost.of(network)
    network.requires_grad_(False)
    network.blocks[0].mlp.requires_grad_(True)
    part = Cost.of(network)
    assert (whole.trained, whole.head_trained) == (1, True)
    assert not part.head_trained
    assert 0.2 < part.trained < 0.5  # one of two MLPs, which are two thirds of the weights
    assert part.step(10, 0, 8, 0) < whole.step(10, 0, 8, 0)


def test_precision_is_chosen_by_the_machine_and_kept(monkeypatch):
    config, wide = resolve(PretrainConfig, {}).config, dit(hidden_size=256)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for gain, expected in ((1.0, "fp32"), (2.0, "bf16")):
        monkeypatch.setattr(speed, "_gain_of_half", lambda width, gain=gain: gain)
        assert choose_compute(config, wide, None)["precision"] == expected
    assert choose_compute(config, dit(), None)["precision"] == "fp32"
    assert "narrow" in choose_compute(config, dit(), None)["reason"]
    stored = {"precision": "bf16", "threads": 1, "reason": "then"}
    assert choose_compute(config, dit(), stored) == stored
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_compute(config, wide, None)["precision"] == "fp32"


def test_threads_are_as_asked_and_do_not_stay():
    before = torch.get_num_threads()
    model = dit()
    assert choose_compute(resolve(PretrainConfig, {"threads": before + 1}).config, model, None)["threads"] == before + 1
    assert torch.get_num_threads() == before + 1
    assert choose_compute(resolve(PretrainConfig, {}).config, model, None)["threads"] <= before
    assert torch.get_num_threads() <= before


@pytest.fixture
def run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"def f{i}(x):\n    return x * {i}\n\n" for i in range(200)))

    def train(name, **options):
        flags = {**TINY, "data": str(text), "out": str(tmp_path / name), **options}
        return pretrain(resolve(PretrainConfig, flags)), load_file(tmp_path / name / "model.safetensors")

    return train


def test_bf16_on_a_cpu_trains_and_goes_on_in_bf16(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(speed, "_WIDE", 8)
    monkeypatch.setattr(speed, "_gain_of_half", lambda width: 2.0)
    result, weights = run("run")
    assert result["compute"]["precision"] == "bf16"
    assert all(x.dtype == torch.float32 for x in weights.values())
    assert torch.isfinite(torch.tensor(result["valid"]["nll"]))
    scalars = json.loads((tmp_path / "run" / "soft_mask.json").read_text())["raw"]
    assert any(torch.tensor(v).bfloat16().float() != v for v in scalars.values())  # never rounded to bf16
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(speed, "_gain_of_half", lambda width: 1.0)
    assert run("run")[0]["compute"]["precision"] == "bf16"
    assert run("exact", precision="fp32")[0]["valid"]["nll"] != result["valid"]["nll"]


def test_recomputed_activations_change_nothing(run):
    (_, kept), (_, again) = run("kept"), run("again", gradient_checkpointing=True)
    assert all(torch.equal(kept[n], again[n]) for n in kept)


def test_compiled_blocks_compute_the_same():
    torch._dynamo.reset()
    model = dit()
    expected = loss_of(model)
    model.compile_blocks(backend="aot_eager", fullgraph=True)
    found = loss_of(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # with and without gradient, for all blocks


def test_what_the_fused_kernel_gets_makes_the_logits():
    causal = AutoModelForCausalLM.from_config(small_causal("llama", 96, is_causal=False))
    for model in (dit(), Denoiser(causal, 95, forbidden=[90, 95])):
        hidden = torch.randn(5, model.table.shape[1])
        torch.testing.assert_close(F.linear(*model._before_logits(hidden)), model.logits(hidden), rtol=1e-5, atol=1e-4)


def test_attention_is_chosen_where_there_is_a_choice():
    model = AutoModelForCausalLM.from_config(small_causal("llama", 96, is_causal=False)).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        fused = model(ids).logits
        set_attention(model, "eager")
        assert model.config._attn_implementation == "eager"
        torch.testing.assert_close(model(ids).logits, fused, rtol=1e-4, atol=1e-5)
    set_attention(dit().backbone, "sdpa")
    with pytest.raises(UserError, match="a DiT has"):
        set_attention(dit().backbone, "eager")
    with pytest.raises(UserError, match="flash-attn"):
        set_attention(model, "flash_attention_2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_what_the_machine_lacks_is_told_in_one_line(run, monkeypatch):
    with pytest.raises(UserError, match="--liger: its kernels need a CUDA device"):
        run("run", liger=True)

    def no_compiler(function):
        raise RuntimeError("No working C++ compiler found\nand a page more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"--compile does not work here: No working C\+\+ compiler found\. It needs"):
        run("run", compile=True)


def test_dtype_is_another_name_for_precision(capsys):
    assert main(["pretrain", "--dtype", "fp31"]) == 2
    assert "--precision fp31" in capsys.readouterr().err
