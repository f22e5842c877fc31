"""Every command's configuration: `options` is how one is declared and resolved, the other files say what is in them."""

from smdiff.config.code import EvalCodeConfig
from smdiff.config.evaluation import EvalTextConfig
from smdiff.config.options import Resolved, as_dict, fingerprint, flag, identity, nearest, resolve, value_type
from smdiff.config.sampling import ADAPTIVE, REMASKING, SCHEDULER_NAMES, SampleConfig
from smdiff.config.training import FinetuneConfig, PretrainConfig, TrainingConfig

__all__ = [
    "ADAPTIVE",
    "REMASKING",
    "SCHEDULER_NAMES",
    "EvalCodeConfig",
    "EvalTextConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "Resolved",
    "SampleConfig",
    "TrainingConfig",
    "as_dict",
    "fingerprint",
    "flag",
    "identity",
    "nearest",
    "resolve",
    "value_type",
]
