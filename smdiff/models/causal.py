"""Causal `transformers` models as denoisers: Dream, LLaDA, and any whose configuration says `is_causal = False`.

`transformers` masks in both directions then. Dream is Qwen2 with that switch and shifted logits; LLaDA is Llama under
other tensor names. So nobody's code is downloaded and run.
"""

from __future__ import annotations

import contextlib
import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, is_flash_attn_2_available

from smdiff.errors import UserError, first_line, some
from smdiff.models.dit import DiT
from smdiff.models.weights import read_object

SHIFT = "shifted_logits"
"""Name of the configuration's entry: the output at a position predicts the next one."""

# LLaDA's tensor names (its Llama blocks) as Llama's.
_LLADA_NAMES = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
# The most that weights are packed.
_PARAMETERS_A_BYTE = 8
# What a causal model may do between its last hidden state and its logits beyond one linear map.
_AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def _llada(raw: dict[str, Any], name: str) -> PreTrainedConfig:
    expected = {"block_type": "llama", "include_bias": False, "layer_norm_type": "rms", "rope": True, "alibi": False}
    odd = [f"{key} = {raw[key]!r}" for key, value in expected.items() if raw.get(key, value) != value]
    if raw.get("include_qkv_bias") or raw.get("scale_logits") or odd:
        raise UserError(
            f"{name} is no LLaDA that smdiff knows",
            ", ".join(odd) or "it has biases or scaled logits",
            fix="Take LLaDA-8B or one of its finetunes.",
        )
    return LlamaConfig(
        vocab_size=raw.get("embedding_size") or raw["vocab_size"],
        hidden_size=raw["d_model"],
        intermediate_size=raw["mlp_hidden_size"],
        num_hidden_layers=raw["n_layers"],
        num_attention_heads=raw["n_heads"],
        num_key_value_heads=raw.get("n_kv_heads") or raw["n_heads"],
        max_position_embeddings=raw["max_sequence_length"],
        rms_norm_eps=raw["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
        tie_word_embeddings=raw.get("weight_tying", False),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=raw.get("eos_token_id"),
        pad_token_id=raw.get("pad_token_id"),
        mask_token_id=raw["mask_token_id"],
        torch_dtype=raw.get("torch_dtype"),
        is_causal=False,
        **{SHIFT: False},
    )


def _dream(raw: dict[str, Any]) -> PreTrainedConfig:
    not_its = ("model_type", "auto_map", "architectures", "attn_implementation", "rope_theta", "rope_scaling")
    own = {k: v for k, v in raw.items() if k not in not_its}
    rope = {"rope_type": "default", "rope_theta": raw.get("rope_theta", 1e6), **(raw.get("rope_scaling") or {})}
    return Qwen2Config.from_dict({"rope_parameters": rope, **own, "is_causal": False, SHIFT: True})


def denoiser_config(name: str, raw: dict[str, Any]) -> PreTrainedConfig:
    """A `transformers` configuration that masks nothing, with `mask_token_id` and `shifted_logits`.

    Raises:
        UserError: a causal model that was not made a denoiser, or a kind that is not known.
    """
    kind = raw.get("model_type", "")
    try:
        if kind == "Dream":
            config = _dream(raw)
        elif kind == "llada":
            config = _llada(raw, name)
        else:
            config = AutoConfig.for_model(**raw)
    except Exception as error:  # configurations check themselves, with errors of many kinds
        raise UserError(
            f"the configuration of {name} cannot be used",
            f"model_type {kind!r}: {error}",
            fix="Copy or fetch it once more.",
        ) from None
    if getattr(config, "is_causal", True) is not False:
        raise UserError(
            f"{name} is a causal model", "it was not trained to fill masks (its config.json has no is_causal = false)",
            "Make a denoiser of it with smdiff finetune.",
        )  # fmt: skip
    if getattr(config, "mask_token_id", None) is None:
        raise UserError(f"{name} names no mask token", "its config.json has no mask_token_id", fix="Put it there.")
    if not isinstance(getattr(config, SHIFT, None), bool):
        raise UserError(
            f"{name} does not say which position an output predicts", f"its config.json has no {SHIFT}",
            f'Put "{SHIFT}": true there if it is the next one (adapted causal models), false if its own.',
        )  # fmt: skip
    check_head(name, config)
    return config


def check_head(name: str, config: PreTrainedConfig) -> None:
    """Refuse models whose logits are not the output layer's own."""
    after = [key for key in _AFTER_THE_HEAD if getattr(config, key, None) not in (None, 1, 1.0)]
    if after:
        raise UserError(
            f"{name} cannot be used", f"models with {', '.join(after)} are not supported", fix="Take another model."
        )


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest text that a model was made for; None if its configuration does not tell."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return next((n for name in names if (n := getattr(config, name, None))), None)


def is_causal(raw: dict[str, Any]) -> bool:
    """Whether a config.json is that of an ordinary causal model, which fills no masks yet."""
    return raw.get("model_type") not in ("Dream", "llada") and raw.get("is_causal", True) is not False


def load_causal(
    folder: Path, raw: dict[str, Any], dtype: torch.dtype | None, quantize: bool = False
) -> tuple[PreTrainedModel, bool]:
    """The backbone in evaluation mode, and whether its logits are shifted.

    Args:
        folder: with safetensors, in one file or several.
        raw: its config.json.
        dtype: of the weights; None keeps the checkpoint's own.
        quantize: whether the linear layers hold four bits a weight.

    Raises:
        UserError: weights that are missing, too many, or of another shape.
    """
    config = denoiser_config(str(folder), raw)
    names = _LLADA_NAMES if raw.get("model_type") == "llada" else None
    return load_weights(folder, config, dtype, quantize, key_mapping=names), getattr(config, SHIFT)


def _check_size(source: Path, config: PreTrainedConfig) -> None:
    """Refuse an index that leads out of its folder, and a configuration of far more than the files hold.

    Raises:
        UserError: either; neither could be loaded, but it would be tried.
    """
    files, tensors, fix = [source], None, "Copy or fetch the model once more."
    if source.is_dir():
        files = list(source.glob("*.safetensors"))
        if (index := source / SAFE_WEIGHTS_INDEX_NAME).exists():
            named = read_object(index).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(n, str) and Path(n).name == n for n in named.values()):
                why = "its weight_map names something else than files of its folder"
                raise UserError(f"{index} cannot be used", why, fix)
            tensors = len(named)
        elif len(files) == 1:
            with contextlib.suppress(Exception), safe_open(files[0], "pt") as opened:  # what is wrong is told below
                tensors = len(opened.keys())
    layers = getattr(config, "num_hidden_layers", 0)
    if tensors is not None and isinstance(layers, int) and layers > tensors:
        why = f"its configuration has {layers} layers, its files {tensors} tensors"
        raise UserError(f"{source} does not fit the model", why, fix)
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    except Exception as error:  # configurations check themselves, with errors of many kinds
        raise UserError(f"the configuration of {source} cannot be used", first_line(error), fix) from None
    size = sum(file.stat().st_size for file in files)
    if files and parameters > _PARAMETERS_A_BYTE * size:
        why = f"its configuration has {parameters:,} parameters, its files {size:,} bytes"
        raise UserError(f"{source} does not fit the model", why, fix)


def load_weights(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None, quantize: bool = False, **options: Any
) -> PreTrainedModel:
    """A causal `transformers` model, strictly: `options` are those of `from_pretrained`.

    Raises:
        UserError: unreadable, or weights that are missing, too many, or of another shape.
    """
    source = folder / options["gguf_file"] if "gguf_file" in options else folder
    _check_size(source, config)
    if quantize:
        options["quantization_config"] = four_bits()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with all else that does not fit
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    except Exception as error:  # unreadable files and networks raise nearly anything
        raise UserError(f"cannot load {source}", first_line(error), fix="Copy or fetch it once more.") from None
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [f"{key} is not part of the model" for key in sorted(report["unexpected_keys"])]
    wrong += [f"{key[0] if isinstance(key, tuple) else key} has another shape" for key in report["mismatched_keys"]]
    if wrong:
        raise UserError(f"{source} does not fit the model", some(wrong), fix="Copy or fetch it once more.")
    # Or it would be saved under the names it was read from, which are not those of its configuration.
    model._weight_conversions = None
    return model.eval()


def set_attention(backbone: PreTrainedModel, kind: str) -> None:
    """Choose how a `transformers` model computes attention: sdpa, eager, or flash_attention_2.

    Raises:
        UserError: the model has one way only, or the package is not installed.
    """
    if backbone.config._attn_implementation == kind:
        return
    if isinstance(backbone, DiT):
        if kind != "sdpa":
            raise UserError(f"--attn {kind}", "a DiT has PyTorch's fused attention only", "Leave it out.")
        return
    if kind == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(f"--attn {kind}", "it needs a GPU and flash-attn", "pip install flash-attn, or --attn sdpa.")
    try:
        backbone.set_attn_implementation(kind)
    except (ValueError, ImportError) as error:
        raise UserError(f"--attn {kind}", first_line(error), "Use --attn sdpa or --attn eager.") from None


def four_bits() -> Any:
    """How a base is loaded in four bits.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError("--quantize 4bit needs bitsandbytes", fix="pip install bitsandbytes, or leave it out.")
    # NF4 with nested constants, as in QLoRA (arXiv 2305.14314).
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
