"""Schedulers: which masked positions to reveal at each step, and with what. They know no model.

A new scheduler is one file and one line in `SCHEDULERS`; the fields of its dataclass are its options.
"""

from __future__ import annotations

from smdiff.decoding.schedulers.ancestral import Ancestral, Origin
from smdiff.decoding.schedulers.base import Move, Scheduler, State
from smdiff.decoding.schedulers.confidence import (
    Entropy,
    EntropyBound,
    LowConfidence,
    MaskgitPlus,
    Threshold,
    TopkMargin,
)
from smdiff.decoding.schedulers.remdm import Cap, Conf, Loop, Rescale

SCHEDULERS: dict[str, type[Scheduler]] = {
    "ancestral": Ancestral,
    "origin": Origin,
    "maskgit_plus": MaskgitPlus,
    "topk_margin": TopkMargin,
    "entropy": Entropy,
    "low_confidence": LowConfidence,
    "threshold": Threshold,
    "entropy_bound": EntropyBound,
    "remdm-cap": Cap,
    "remdm-rescale": Rescale,
    "remdm-conf": Conf,
    "remdm-loop": Loop,
}

__all__ = ["SCHEDULERS", "Ancestral", "Move", "Scheduler", "State"]
