"""One JSON shape for the result of every command."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SCHEMA = 1


def environment() -> dict[str, Any]:
    """What a number depends on besides the configuration: versions and the device."""
    import torch

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    cuda = torch.cuda.is_available()
    return {
        "versions": {p: installed(p) for p in ("smdiff", "torch", "transformers", "datasets", "tokenizers")}
        | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
    }


def result(command: str, config: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """The common frame around a command's own sections."""
    return {"schema": SCHEMA, "command": command, "config": config, **sections, "environment": environment()}
