"""Adapters through `peft`: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353) on a backbone, in plain peft's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from smdiff.errors import UserError, first_line, some
from smdiff.models.dit import DiT
from smdiff.models.weights import check_names, read_tensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
# Attention's projections in the families there are, the most common first.
_ATTENTION = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("qkv_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "dense"),
    ("query_key_value", "dense"),
    ("attn.c_attn", "attn.c_proj"),
    ("attn_qkv", "attn_out"),
)


def _targets(backbone: nn.Module, asked: str | None) -> list[str]:
    """The layers to adapt: those asked for, or attention's; each must be there."""
    layers = [
        name for name, m in backbone.named_modules() if isinstance(m, nn.Linear | Conv1D) or hasattr(m, "quant_state")
    ]

    def there(target: str) -> bool:
        return any(name == target or name.endswith(f".{target}") for name in layers)

    kinds = sorted({name.rpartition(".")[2] for name in layers} - {"lm_head"})
    if asked is not None:
        targets = [t.strip() for t in asked.split(",") if t.strip()]
        if missing := [t for t in targets if not there(t)]:
            raise UserError(
                f"--targets {asked}", f"no layer is called {', '.join(missing)}", f"There are {', '.join(kinds)}."
            )
        return targets
    found = next((list(group) for group in _ATTENTION if all(there(t) for t in group)), None)
    if found is None:
        raise UserError(
            "the model's attention layers have unknown names", fix=f"Pick from {', '.join(kinds)} with --targets."
        )
    return found


def attach(
    backbone: PreTrainedModel,
    kind: str,
    *,
    base: str,
    rank: int = 16,
    alpha: int = 16,
    dropout: float = 0.0,
    targets: str | None = None,
    train_row: int | None = None,
) -> PeftModel:
    """Put a fresh adapter on `backbone`, in place, and freeze everything else.

    Args:
        kind: "dora" or "lora".
        base: the name under which the backbone is found again.
        train_row: a token whose input embedding is trained too (a mask that the base does not know).
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_dora=kind == "dora",
        target_modules=_targets(backbone, targets),
        bias="none",
        task_type=None if isinstance(backbone, DiT) else "CAUSAL_LM",
        base_model_name_or_path=base,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in backbone.modules()),
        trainable_token_indices=None if train_row is None else {_embedding_name(backbone): [train_row]},
    )
    model = get_peft_model(backbone, config)
    name_base(config, base)
    return model


def name_base(config: PeftConfig, base: str) -> None:
    """Say on what an adapter goes: a path, or a hub name with or without @revision, which is peft's own entry."""
    name, _, revision = (base, "", "") if Path(base).exists() else base.partition("@")
    config.base_model_name_or_path, config.revision = name, revision or None


def base_of(config: PeftConfig) -> str:
    """What `name_base` said."""
    name = str(config.base_model_name_or_path)
    return f"{name}@{config.revision}" if config.revision and not Path(name).expanduser().exists() else name


def _embedding_name(backbone: PreTrainedModel) -> str:
    table = backbone.get_input_embeddings()
    return next(name for name, module in backbone.named_modules() if module is table).rpartition(".")[2]


def read_config(folder: Path) -> PeftConfig:
    """The adapter's configuration.

    Raises:
        UserError: unreadable, or of a kind that is not supported.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # peft raises what the JSON makes it
        raise UserError(
            f"cannot read {folder / CONFIG}", first_line(error), fix="Copy or fetch it once more."
        ) from None
    if not isinstance(config, LoraConfig):
        raise UserError(
            f"the adapter in {folder} is {config.peft_type}",
            "only LoRA and DoRA are supported",
            fix="Merge it with peft first.",
        )
    if not config.base_model_name_or_path:
        raise UserError(f"{folder / CONFIG} names no base model", fix="Put base_model_name_or_path there.")
    return config


def load(backbone: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapter of `folder` on `backbone`, in place.

    Raises:
        UserError: it does not fit, naming the tensors.
    """
    config = read_config(folder)
    config.inference_mode = False
    try:
        model = get_peft_model(backbone, config)
    except ValueError as error:
        raise UserError(
            f"the adapter in {folder} does not fit its base",
            first_line(error),
            fix="Check base_model_name_or_path in its adapter_config.json.",
        ) from None
    name_base(config, base_of(read_config(folder)))
    restore(model, folder)
    return model


def restore(model: PeftModel, folder: Path) -> None:
    """Fill the adapter with the tensors of `folder`: each must be there, in shape, and none too many."""
    tensors = read_tensors(folder / WEIGHTS)
    check_names(state(model), tensors, f"the adapter in {folder}")
    set_peft_model_state_dict(model, tensors)


def state(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors by the names of its file."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def save(model: PeftModel, folder: Path) -> None:
    """Write peft's two files."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def merge(model: PeftModel) -> Any:
    """The backbone with the adapter in its weights."""
    with torch.no_grad():
        return model.merge_and_unload(safe_merge=True)


def options(model: PeftModel) -> dict[str, Any]:
    """What the adapter is, by the names of the command line."""
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    return {
        "adapter": "dora" if config.use_dora else "lora",
        "rank": config.r,
        "alpha": config.lora_alpha,
        "adapter_dropout": config.lora_dropout,
        "targets": ",".join(sorted(config.target_modules or [])),
    }


def same(model: PeftModel, wanted: dict[str, Any]) -> None:
    """Refuse to continue an adapter under other options.

    Args:
        wanted: of adapter, rank, alpha, adapter_dropout and targets those that were asked for.
    """
    stored = options(model)
    if "targets" in wanted:
        wanted = wanted | {"targets": ",".join(sorted(wanted["targets"].split(",")))}
    if other := [f"{k} {stored[k]} -> {v}" for k, v in wanted.items() if stored[k] != v]:
        raise UserError(
            "the model is an adapter with other options", some(other),
            "Leave them out to continue it, or merge it first (--merge) and start from RUN/merged.",
        )  # fmt: skip
