"""One way in: a run folder, MDLM's layout, a Dream, a LLaDA, a hub name. Strict about every tensor; runs no code."""

from __future__ import annotations

import collections
import json
import pickle
import re
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from smdiff.data.tokenizers import load_tokenizer, open_tokenizer
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError, first_line, some
from smdiff.models.causal import load_causal
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig

_PREFIX = "backbone."
_HEAD = "tran_head."
# Rotary frequencies, which MDLM stores and this DiT computes.
_COMPUTED = "rotary_emb.inv_freq"


class _Inert:
    """Stands for any object of a pickle that is not a tensor; accepts everything, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


_TENSOR_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other global becomes `_Inert`, so no code of the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        return _TENSOR_GLOBALS.get((module, name), _Inert)


def read_pickled_checkpoint(path: Path) -> dict[str, Any]:
    """The tensors of a torch checkpoint (a Lightning .ckpt, say) without running anything in it."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"cannot read {path}", "it is no torch checkpoint (not a zip file)")
    inert_pickle = types.SimpleNamespace(Unpickler=_InertUnpickler, load=pickle.load, __name__="smdiff.inert_pickle")
    try:
        loaded = torch.load(path, map_location="cpu", pickle_module=inert_pickle, weights_only=False)
    except Exception as error:  # whatever a broken or hostile file makes the reader say
        raise UserError(f"cannot read {path}", first_line(error)) from None
    if not isinstance(loaded, dict):
        raise UserError(f"cannot read {path}", "it holds no dictionary of tensors")
    return loaded


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file.

    Raises:
        UserError: missing, cut short, or no safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}", first_line(error)) from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: missing, or not an object.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}", error.strerror or type(error).__name__) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON", str(error)) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def load_strictly(module: torch.nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Fill `module` with `tensors`: each must be there, in shape, and none too many.

    Raises:
        UserError: naming the tensors that are missing, extra or misshapen.
    """
    wanted = module.state_dict()
    wrong = [f"{n} is missing" for n in wanted if n not in tensors]
    wrong += [f"{n} is not part of the model" for n in tensors if n not in wanted]
    wrong += [
        f"{n} is {tuple(tensors[n].shape)}, expected {tuple(x.shape)}"
        for n, x in wanted.items()
        if n in tensors and tensors[n].shape != x.shape
    ]
    if wrong:
        raise UserError(
            f"{source} does not fit the model", some(wrong),
            "In training, leave out --preset, --tokenizer and the shape's options to take the checkpoint's own.",
        )  # fmt: skip
    module.load_state_dict(tensors)


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what comes with them.

    Attributes:
        shape: the DiT that the tensors describe.
        tensors: by our names.
        soft_mask: the stored scalars, or None for a binary model.
        folder: the run's folder with its tokenizer; None for bare weights.
        note: something the user should know (a run that is not finished, say).
    """

    source: str
    shape: DiTConfig
    tensors: dict[str, Tensor]
    soft_mask: SoftMask | None = None
    folder: Path | None = None
    note: str = ""


def _shape_of(tensors: dict[str, Tensor], frequencies: Tensor | None, heads: int | None, source: str) -> DiTConfig:
    """The DiT that bare MDLM tensors belong to, read off their shapes."""
    try:
        vocab_size, hidden = tensors["vocab_embed.embedding"].shape
        cond_dim = tensors["sigma_map.mlp.0.weight"].shape[0]
    except KeyError as error:
        raise UserError(
            f"{source} is not in MDLM's layout", f"it has no tensor {error.args[0]} (with or without {_PREFIX!r})"
        ) from None
    layers = 1 + max((int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")), default=-1)
    if frequencies is not None:
        stated = hidden // (2 * frequencies.numel())
        if heads not in (None, stated):
            raise UserError(
                f"{source} does not fit --heads {heads}", f"{_COMPUTED} is that of {stated} attention heads"
            )
        heads = stated
    if heads is None:
        raise UserError(
            f"{source} does not tell the number of attention heads", f"{_COMPUTED} is missing", "Give it with --heads."
        )
    return DiTConfig(vocab_size, hidden, layers, heads, cond_dim)


def _in_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(_PREFIX): x.float() for n, x in tensors.items() if isinstance(x, Tensor)}


def _soft_mask_of(head: dict[str, Tensor]) -> SoftMask | None:
    """The scalars in a checkpoint of the paper's code, which does not store k: 3, as in its language runs."""
    if not {"raw_scale", "raw_steep", "raw_centre_neg"} <= head.keys():
        return None
    raw = {"raw_scale": head["raw_scale"], "raw_steepness": head["raw_steep"], "raw_centre": head["raw_centre_neg"]}
    return SoftMask.from_dict({"k": 3, "raw": raw})


def _averaged(loaded: dict[str, Any], shape: DiTConfig, source: str) -> dict[str, Tensor] | None:
    """MDLM's averaged weights (a list in parameter order), which its results come from; None where there are none."""
    ema = loaded.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if shadow is None:
        return None
    with torch.device("meta"):
        parameters = dict(DiT(shape).named_parameters())
    fits = isinstance(shadow, list) and len(shadow) >= len(parameters)
    if not fits or any(getattr(x, "shape", None) != p.shape for x, p in zip(shadow, parameters.values(), strict=False)):
        raise UserError(f"{source} does not fit the model", "its averaged weights (ema) are of another shape")
    return _in_our_names(dict(zip(parameters, shadow, strict=False)))


def _read_mdlm(path: Path, heads: int | None) -> Checkpoint:
    """Bare weights in MDLM's layout: .safetensors, or a .ckpt/.pt/.bin pickle."""
    if path.suffix == ".safetensors":
        loaded: dict[str, Any] = {"state_dict": read_tensors(path)}
    else:
        loaded = read_pickled_checkpoint(path)
    state = loaded.get("state_dict", loaded)
    tensors = _in_our_names(state if isinstance(state, dict) else {})
    frequencies = tensors.pop(_COMPUTED, None)
    head = {n.removeprefix(_HEAD): tensors.pop(n) for n in list(tensors) if n.startswith(_HEAD)}
    shape = _shape_of(tensors, frequencies, heads, str(path))
    averaged = _averaged(loaded, shape, str(path))
    note = "" if averaged is None else f"using the averaged weights of {path}"
    return Checkpoint(str(path), shape, averaged or tensors, _soft_mask_of(head), note=note)


def read_soft_mask(folder: Path) -> SoftMask | None:
    """The scalars in a folder; None where there are none."""
    path = folder / "soft_mask.json"
    if not path.exists():
        return None
    try:
        return SoftMask.from_dict(read_object(path))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold the scalars", repr(error)) from None


def _read_run(folder: Path) -> Checkpoint:
    """A folder that smdiff wrote: a finished run, or one of its checkpoints."""
    shape = DiTConfig.from_dict(read_object(folder / "config.json"))
    tensors = read_tensors(folder / "model.safetensors")
    ema = folder / "ema.safetensors"
    if ema.exists():
        tensors |= read_tensors(ema)
    soft_mask = read_soft_mask(folder)
    run = folder.parent.parent  # of a checkpoint: the tokenizer and run.json are the run's
    home = run if not _has_tokenizer(folder) and (run / "run.json").exists() else folder
    return Checkpoint(str(folder), shape, tensors, soft_mask, home)


def local_path(name: str) -> Path:
    """Where the files of `name` are: a path as it is; a hub name (owner/model) after the download, if it is needed.

    Raises:
        UserError: no such path, and no such name on the hub or no network.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    fix = "Give a run's --out folder, a checkpoint, or a name on the hub (owner/model)."
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise UserError(f"no model at {name}", "no such file or folder", fix)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]))
    except Exception as error:  # whatever the network layer below says
        raise UserError(f"no model at {name}", f"no such folder, nor on the hub: {first_line(error)}", fix) from None


def _is_dit(folder: Path) -> bool:
    config = folder / "config.json"
    return config.exists() and read_object(config).get("model_type") == DiTConfig.model_type


def _is_causal(folder: Path) -> bool:
    """Whether a folder holds a `transformers` model other than ours; MDLM's own kind counts as bare weights."""
    config = folder / "config.json"
    return config.exists() and read_object(config).get("model_type") not in (None, "mdlm", DiTConfig.model_type)


def read_checkpoint(name: str, heads: int | None = None) -> Checkpoint:
    """A DiT: a run folder (finished or not), a checkpoint folder, or a file, folder or hub name with MDLM weights.

    Args:
        heads: attention heads, for bare weights that do not tell.

    Raises:
        UserError: missing, unreadable, or of no known kind.
    """
    path = local_path(name)
    if path.is_file():
        return _read_mdlm(path, heads)
    if _is_dit(path):
        return _read_run(path)
    latest = get_last_checkpoint(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if latest is not None:
        found = _read_run(Path(latest))
        return Checkpoint(
            name, found.shape, found.tensors, found.soft_mask, found.folder,
            note=f"{name} is not finished: using {Path(latest).name}",
        )  # fmt: skip
    weights = sorted([*path.glob("*.safetensors"), *path.glob("*.ckpt")])
    if len(weights) == 1 and not _is_causal(path):
        config = path / "config.json"
        stated = read_object(config).get("n_heads") if config.exists() else None
        return _read_mdlm(weights[0], heads or stated)
    raise UserError(
        f"no model in {name}", "neither a run of smdiff, nor MDLM weights, nor a transformers model",
        "Give one of them, or a name on the hub (owner/model).",
    )  # fmt: skip


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").exists()


def read_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer that a run folder carries."""
    folder = checkpoint.folder
    if folder is None or not _has_tokenizer(folder):
        raise UserError(
            f"{checkpoint.source} carries no tokenizer", "it is bare weights",
            "Name the one it was trained with: --tokenizer gpt2, say.",
        )  # fmt: skip
    try:
        return open_tokenizer(folder)
    except Exception as error:  # malformed files make it raise nearly anything
        raise UserError(f"cannot read the tokenizer in {folder}", first_line(error)) from None


def build(checkpoint: Checkpoint) -> Denoiser:
    """The denoiser of a checkpoint."""
    backbone = DiT(checkpoint.shape)
    load_strictly(backbone, checkpoint.tensors, checkpoint.source)
    return Denoiser(backbone, checkpoint.shape.mask_token_id, checkpoint.soft_mask)


class Model(NamedTuple):
    """A model ready to sample from or score.

    Attributes:
        denoiser: in evaluation mode.
        tokenizer: with a mask token.
        note: something the user should know; "" if nothing.
    """

    denoiser: Denoiser
    tokenizer: PreTrainedTokenizerBase
    note: str = ""


def _without_token(vocab_size: int, mask_id: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that must never be drawn: the mask's, and those that stand for no token (Dream has 397)."""
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(vocab_size) if i not in known or i == mask_id]


def _load_dit(name: str, tokenizer_name: str | None) -> Model:
    checkpoint = read_checkpoint(name)
    shape = checkpoint.shape
    carried = checkpoint.folder is not None and _has_tokenizer(checkpoint.folder)
    if not carried and tokenizer_name is not None:
        tokenizer = load_tokenizer(tokenizer_name)
        if len(tokenizer) != shape.vocab_size or tokenizer.mask_token_id != shape.mask_token_id:
            raise UserError(
                f"--tokenizer {tokenizer_name} does not fit {name}",
                f"it has {len(tokenizer)} ids with the mask at {tokenizer.mask_token_id}, the model has "
                f"{shape.vocab_size} with the mask at {shape.mask_token_id}",
            )
    else:
        tokenizer = read_tokenizer(checkpoint)
    return Model(build(checkpoint), tokenizer, checkpoint.note)


def _load_causal(name: str, folder: Path, tokenizer_name: str | None, dtype: torch.dtype | None) -> Model:
    backbone, shift = load_causal(folder, read_object(folder / "config.json"), dtype)
    mask_id, vocab_size = backbone.config.mask_token_id, backbone.config.vocab_size
    tokenizer = load_tokenizer(tokenizer_name or str(folder), mask_id)
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size or tokenizer.mask_token_id != mask_id:
        raise UserError(
            f"the tokenizer does not fit {name}",
            f"its ids go up to {largest} with the mask at {tokenizer.mask_token_id}, the model has {vocab_size} "
            f"embeddings with the mask at {mask_id}",
        )
    forbidden = _without_token(vocab_size, mask_id, tokenizer)
    return Model(Denoiser(backbone, mask_id, read_soft_mask(folder), shift, forbidden), tokenizer)


def _place(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, or the best there is."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device}", "there is no such device here", "Leave it out for the best there is."
        ) from error
    return place


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(
    name: str,
    tokenizer: str | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> Model:
    """A model ready to sample from or score.

    Args:
        name: a run folder, a Dream, LLaDA or other bidirectional `transformers` folder, MDLM weights, or a hub name.
        tokenizer: a folder or hub name, for weights that carry none.
        device: by default the GPU if there is one.
        precision: "fp32", "bf16", or "auto", which is fp32 on a CPU and the checkpoint's own on a GPU.

    Raises:
        UserError: whatever is missing or does not fit.
    """
    place = _place(device)
    dtype = _DTYPES.get(precision, torch.float32 if place.type == "cpu" else None)
    path = local_path(name)
    model = _load_causal(name, path, tokenizer, dtype) if path.is_dir() and _is_causal(path) else None
    model = model or _load_dit(name, tokenizer)
    model.denoiser.to(place).eval()
    if dtype is None and model.denoiser.table.dtype == torch.float16:
        dtype = torch.bfloat16  # logits of tokens that are never chosen are beyond float16
    if dtype is not None:
        model.denoiser.backbone.to(dtype)  # the three scalars stay in float32
    return model
