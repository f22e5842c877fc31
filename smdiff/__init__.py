"""smdiff: soft-masked diffusion language models, from the command line and from Python.

    model = smdiff.load("runs/soft")
    for text in smdiff.generate(model, "def fibonacci(n):", smdiff.SampleConfig(scheduler="entropy", steps=32)):
        print(text.text)

Names are imported when they are first used, so that `smdiff --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smdiff.config import SampleConfig as SampleConfig
    from smdiff.decoding.generate import Text as Text
    from smdiff.decoding.generate import generate as generate
    from smdiff.errors import UserError as UserError
    from smdiff.models.load import Model as Model
    from smdiff.models.load import load as load

__version__ = "0.1.0"

_HOMES = {
    "SampleConfig": "smdiff.config",
    "Text": "smdiff.decoding.generate",
    "generate": "smdiff.decoding.generate",
    "UserError": "smdiff.errors",
    "Model": "smdiff.models.load",
    "load": "smdiff.models.load",
}
__all__ = ["Model", "SampleConfig", "Text", "UserError", "generate", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
