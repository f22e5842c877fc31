"""Shared parts of the tests: the golden cases (skipped with a reason where they are absent) and small real models."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config, PreTrainedConfig

from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models.causal import load_causal
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig
from smdiff.models.weights import read_object
from smdiff.ui.console import set_quiet

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure():
    """The background jobs of a shell ignore Ctrl-C, and so would all that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def loud():
    """What one test silenced with --quiet, the next one hears."""
    yield
    set_quiet(False)


@dataclass(frozen=True)
class Golden:
    """One golden case: tensors by name and the scalars of its JSON."""

    tensors: dict[str, torch.Tensor]
    info: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (golden cases and data files), which a user's clone does not have")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path):
    def load(name: str) -> Golden:
        folder = shared / "golden"
        return Golden(load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text()))

    return load


def soft_mask_from(raw: dict[str, float], k: int | None) -> SoftMask:
    """A SoftMask with the reference's raw parameters."""
    stored = {"raw_scale": raw["raw_scale"], "raw_steepness": raw["raw_steep"], "raw_centre": raw["raw_centre_neg"]}
    if k is None:
        stored["raw_temperature"] = raw["raw_temperature"]
    return SoftMask.from_dict({"k": k, "raw": stored})


def k_of(run: dict[str, Any]) -> int | None:
    """The reference's algorithm name as our `k`."""
    return None if run["alg"] == "mixinputs_with_temp" else run["k"]


@pytest.fixture
def golden_dit(golden) -> DiT:
    """The DiT with the golden weights."""
    weights = golden("dit_weights")
    c = weights.info["config"]
    dit = DiT(
        DiTConfig(
            vocab_size=c["V"],
            hidden_size=c["hidden"],
            num_hidden_layers=c["blocks"],
            num_attention_heads=c["heads"],
            cond_dim=c["cond"],
            dropout=c["dropout"],
        )
    )
    missing = dit.load_state_dict(
        {name: x for name, x in weights.tensors.items() if name != "rotary_emb.inv_freq"}, strict=True
    )
    assert not missing.missing_keys
    return dit.eval()


def small_dit(vocab_size: int = 37, seed: int = 0, **shape: Any) -> DiT:
    """A DiT small enough for tests, with weights that are not at their zero start."""
    torch.manual_seed(seed)
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "cond_dim": 8, "dropout": 0.0}
    dit = DiT(DiTConfig(vocab_size=vocab_size, **{**config, **shape}))
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return dit.eval()


@pytest.fixture
def denoiser() -> Denoiser:
    """A small soft-masked denoiser with random weights and an open gate."""
    return Denoiser(small_dit(), mask_id=36, soft_mask=SoftMask(k=3, w_s=0.7, w_a=1.0, w_b=-2.0))


def small_causal(name: str, vocab_size: int, positions: int = 128, **options: Any) -> PreTrainedConfig:
    """The shape of a small causal model of one of the usual families."""
    if name == "gpt2":
        return GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=positions, **options)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": vocab_size, "num_key_value_heads": 2, "max_position_embeddings": positions}
    own = {"llama": {"tie_word_embeddings": True}, "qwen3": {"head_dim": 8}, "mistral": {"sliding_window": None}}
    return AutoConfig.for_model(name, **shape | own.get(name, {}) | options)


def names(case: str) -> Path:
    """The JSON of a golden case, which need not be there."""
    return SHARED / "golden" / f"{case}.json"


def reference_folder(golden, folder: Path, case: str, model_type: str) -> Path:
    """A checkpoint folder as its authors publish it: their config.json and their tensor names."""
    weights = golden(case)
    save_file(weights.tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(weights.info["config"] | {"model_type": model_type}))
    return folder


@pytest.fixture
def dream(golden, tmp_path):
    """A Dream with golden weights through the ordinary loader; like the reference, it may predict masks."""

    def load(case: str) -> Denoiser:
        folder = reference_folder(golden, tmp_path, case, "Dream")
        backbone, shift = load_causal(folder, read_object(folder / "config.json"), torch.float32)
        assert shift
        return Denoiser(backbone, 200, shift=shift, forbidden=())

    return load


@pytest.fixture
def llada(golden, tmp_path) -> Denoiser:
    """The golden LLaDA through the ordinary loader."""
    folder = reference_folder(golden, tmp_path, "llada_weights", "llada")
    backbone, shift = load_causal(folder, read_object(folder / "config.json"), torch.float32)
    return Denoiser(backbone, 200, shift=shift, forbidden=())
