"""Bare weights in MDLM's layout, in safetensors or in a pickle of which nothing is executed."""

from __future__ import annotations

import collections
import pickle
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError, first_line
from smdiff.models.dit import DiT, DiTConfig
from smdiff.models.weights import read_tensors

_PREFIX = "backbone."
_HEAD = "tran_head."
# Rotary frequencies, which MDLM stores and this DiT computes.
_COMPUTED = "rotary_emb.inv_freq"


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


class _Inert:
    """Stands for any object of a pickle that is not a tensor; accepts everything, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


_TENSOR_CLASSES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
}
_TENSOR_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
# Tensors may share memory (tied weights), and are kept in the file as they are; more than this is made up.
_SHARED = 4


class _InertUnpickler(pickle._Unpickler):
    """Builds tensors and plain containers; every other global becomes `_Inert`, so no code of the file runs.

    It is the reader in Python: the one in C reserves as much memory as a file tells it to.
    """

    # Reserves what the file tells it to; torch never writes it.
    dispatch = {k: v for k, v in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        if function := _TENSOR_FUNCTIONS.get((module, name)):
            return lambda *arguments: function(*arguments)  # a file may set attributes of what it is given
        return _TENSOR_CLASSES.get((module, name), _Inert)


def read_pickled_checkpoint(path: Path) -> dict[str, Any]:
    """The tensors of a torch checkpoint (a Lightning .ckpt, say) without running anything in it."""
    fix = "Fetch it once more."
    if not zipfile.is_zipfile(path):
        raise UserError(f"cannot read {path}", "it is no torch checkpoint (not a zip file)", fix)
    inert_pickle = types.SimpleNamespace(Unpickler=_InertUnpickler, load=pickle.load, __name__="smdiff.inert_pickle")
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > size:
                raise ValueError("it is compressed, which torch never does")
        loaded = torch.load(path, map_location="cpu", pickle_module=inert_pickle, weights_only=False)
        _check_size(loaded, _SHARED * size)
    except Exception as error:  # whatever a broken or hostile file makes the reader say
        raise UserError(f"cannot read {path}", first_line(error), fix) from None
    if not isinstance(loaded, dict):
        raise UserError(f"cannot read {path}", "it holds no dictionary of tensors", fix)
    return loaded


def _check_size(loaded: Any, most: int) -> None:
    """Refuse views of a few numbers as large tensors, which would be filled when they are converted."""
    waiting, seen, total = [loaded], set[int](), 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
        if total > most:
            raise ValueError("its tensors are larger than the file")


def _shape_of(tensors: dict[str, Tensor], frequencies: Tensor | None, heads: int | None, source: str) -> DiTConfig:
    """The DiT that bare MDLM tensors belong to, read off their shapes."""
    try:
        vocab_size, hidden = tensors["vocab_embed.embedding"].shape
        cond_dim = tensors["sigma_map.mlp.0.weight"].shape[0]
        layers = 1 + max((int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")), default=-1)
    except KeyError as error:
        why = f"it has no tensor {error.args[0]} (with or without {_PREFIX!r})"
        raise UserError(f"{source} is not in MDLM's layout", why, "Give a run's folder, or MDLM's weights.") from None
    except (ValueError, IndexError):
        why = "its tensors have names or shapes of their own"
        raise UserError(f"{source} is not in MDLM's layout", why, "Give a run's folder, or MDLM's weights.") from None
    if frequencies is not None and frequencies.numel():
        stated = hidden // (2 * frequencies.numel())
        if heads not in (None, stated):
            raise UserError(
                f"{source} does not fit --heads {heads}",
                f"{_COMPUTED} is that of {stated} attention heads",
                fix="Leave --heads out.",
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
        raise UserError(
            f"{source} does not fit the model",
            "its averaged weights (ema) are of another shape",
            fix="Copy or fetch it once more.",
        )
    return _in_our_names(dict(zip(parameters, shadow, strict=False)))


def read_mdlm(path: Path, heads: int | None) -> Checkpoint:
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
