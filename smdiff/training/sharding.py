"""Training with weights that are spread over processes (FSDP2), and the whole model from them and back.

accelerate shards the model. What smdiff adds: whole weights for files that any program opens, whatever the number of
processes, and shards on CPUs, where accelerate alone would train with a copy in each process without a word.
"""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError
from smdiff.models.denoiser import Denoiser
from smdiff.ranks import is_first


def _asks(engine: str) -> bool:
    """Whether the launcher's configuration asks for it."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def check_launcher(cuda: bool) -> None:
    """Refuse an engine that is not here.

    Raises:
        UserError: DeepSpeed without a GPU, or not installed.
    """
    if _asks("DEEPSPEED") and (not cuda or find_spec("deepspeed") is None):
        why = "it is not installed" if cuda else "accelerate runs it on GPUs only"
        raise UserError("the launcher asks for DeepSpeed", why, "pip install deepspeed." if cuda else "Take FSDP.")


def shard_on_cpu(accelerator: Accelerator) -> bool:
    """Make an accelerator of CPU processes shard too, if the launcher asks for it. Returns whether it does."""
    state = accelerator.state
    if not _asks("FSDP") or state.distributed_type != DistributedType.MULTI_CPU:
        return False
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()
    return True


def check(accelerator: Accelerator) -> None:
    """Refuse what would train something else than it says.

    Raises:
        UserError: FSDP's first version, or ZeRO's third stage: both take weights apart that the two passes need whole.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.FSDP and state.fsdp_plugin.fsdp_version != 2:
        raise UserError("the launcher asks for FSDP 1", fix="Set fsdp_version: 2 in its configuration.")
    if state.distributed_type == DistributedType.DEEPSPEED and state.deepspeed_plugin.zero_stage == 3:
        fix = "Set zero_stage: 2, or take FSDP with fsdp_version: 2, which shards weights as well."
        raise UserError("the launcher asks for DeepSpeed ZeRO 3", "embeddings are read outside of their layer", fix)


class Sharded:
    """A model in training whose weights are spread over processes. Made before it is taken apart.

    Args:
        denoiser: the model; its scalars become tensors of one dimension, as FSDP wants them.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser, self._scalars = denoiser, copy.deepcopy(denoiser.soft_mask)
        self._whole = copy.deepcopy(denoiser).to("meta")
        for parameter in denoiser.parameters():
            if not parameter.ndim:
                parameter.data = parameter.data.reshape(1)

    def whole(self) -> Denoiser:
        """The model with all its weights, on the CPU; in the first process alone. All must ask."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(self._denoiser, options=options)
        if tensors:
            self._whole.load_state_dict(tensors, assign=True)
        return self._whole

    def soft_mask(self) -> SoftMask | None:
        """The scalars, in every process. All must ask."""
        if self._scalars is not None:
            sharded: Any = self._denoiser.soft_mask.named_parameters()  # type: ignore[union-attr]
            self._scalars.load_state_dict({name: p.full_tensor() for name, p in sharded})
        return self._scalars

    def fill(self, whole: Denoiser) -> None:
        """Take over the weights of `whole`, as the first process has them. All must ask."""
        tensors = {}
        if is_first():
            tensors = {name: x if x.ndim else x.reshape(1) for name, x in whole.state_dict().items()}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self._denoiser, tensors, options=options)
        self.changed()

    def changed(self) -> None:
        """The shards have other values now: what was put together from them is stale."""
        assert isinstance(self._denoiser, FSDPModule)
        self._denoiser.reshard()
