"""Rows from the hub: of any data set, and of the text sets that have names."""

from __future__ import annotations

from typing import Any, TypeAlias

import datasets

from smdiff.data.text_sets import TextSet
from smdiff.errors import UserError, first_line

Documents: TypeAlias = datasets.Dataset | datasets.IterableDataset


def from_hub(name: str, streaming: bool = False) -> tuple[Documents, Documents | None]:
    """Training and own held-out rows, if there are any, of `owner/name` or `owner/name/configuration`."""
    repo, configuration = _parts(name)
    splits = _splits(name, repo, configuration, streaming=streaming)
    held_out = next((splits[s] for s in ("validation", "valid", "test") if s in splits), None)
    return splits.get("train", next(iter(splits.values()))), held_out


def text_set_from_hub(name: str, of: TextSet, streaming: bool, scored: bool) -> tuple[Documents, Documents]:
    """Training rows of a text set and those of the split that perplexities are reported on.

    Args:
        scored: take the latter for both. Large sets load nothing else.
    """
    repo, configuration = _parts(of.hub)
    how: dict[str, Any] = {}
    if of.converted:  # CONFIGURATION/SPLIT/*.parquet; what is left of a very large one is CONFIGURATION/partial-SPLIT
        splits = [of.split] if scored else ["train", of.split]
        files = {split: f"{configuration or '*'}/*{split}/*.parquet" for split in splits}
        configuration, how = None, {"data_files": files, "revision": "refs/convert/parquet"}
    found = _splits(name, repo, configuration, streaming=streaming, **how)
    held_out = found[of.split]
    return held_out if scored else found.get("train", held_out), held_out


def _parts(name: str) -> tuple[str, str | None]:
    """owner/name, and the configuration."""
    parts = name.split("/", 2)
    return "/".join(parts[:2]), parts[2] if len(parts) > 2 else None


def _splits(spec: str, repo: str, configuration: str | None, **how: Any) -> dict[str, Documents]:
    try:
        return dict(datasets.load_dataset(repo, configuration, **how))
    except Exception as error:  # network, missing name, gated, malformed: one answer for the user
        reason = f"no such file or folder here, and not loaded from the hub ({first_line(error)})"
        fix = "Give a path that exists, or check the name and the network."
        raise UserError(f"--data {spec}", reason, fix) from None
