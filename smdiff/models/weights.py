"""Files of a model as tensors and JSON objects, and tensors into a network: each in its place, none missing or left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smdiff.errors import UserError, said, some
from smdiff.files import read_json

FIX = "In training, leave out --preset, --tokenizer and the shape's options to take the checkpoint's own."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file.

    Raises:
        UserError: missing, cut short, or no safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}", said(error), "Copy or fetch it once more.") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: missing, or not an object.
    """
    found = read_json(path)
    if found is None:
        raise UserError(f"cannot read {path}", "no such file", "Copy the model's folder again.")
    return found


def check_names(wanted: dict[str, Tensor], found: dict[str, Tensor], source: str, fix: str = "") -> None:
    """Refuse tensors that do not fit.

    Raises:
        UserError: naming the tensors that are missing, extra or misshapen.
    """
    wrong = [f"{n} is missing" for n in wanted if n not in found]
    wrong += [f"{n} is not part of the model" for n in found if n not in wanted]
    wrong += [
        f"{n} is {tuple(found[n].shape)}, expected {tuple(x.shape)}"
        for n, x in wanted.items()
        if n in found and found[n].shape != x.shape
    ]
    if wrong:
        raise UserError(f"{source} does not fit the model", some(wrong), fix)


def load_strictly(module: torch.nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Fill `module` with `tensors`: each must be there, in shape, and none too many.

    Raises:
        UserError: naming the tensors that are missing, extra or misshapen.
    """
    check_names(module.state_dict(), tensors, source, FIX)
    module.load_state_dict(tensors)
