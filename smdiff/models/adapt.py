"""A causal model as the start of a masked diffusion model: attention in both directions, a mask token, shifted logits.

What Dream did to Qwen2 (arXiv 2508.15487), for any causal model of `transformers`. Nothing is trained here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from smdiff.data.tokenizers import MASK, load_tokenizer
from smdiff.errors import UserError, first_line
from smdiff.models.causal import SHIFT, check_head, load_weights

# Rows of the embedding table come in multiples of this, which GPUs multiply faster.
_MULTIPLE = 64


@dataclass(frozen=True)
class Adaptation:
    """How a causal model becomes a denoiser.

    Attributes:
        shift: an output predicts the next position, as in the causal model; False: its own.
        mask_token: a token of the tokenizer that becomes the mask and keeps its embedding; None for an unused id, or a
            new one, whose embedding starts at the mean of all.
    """

    shift: bool = True
    mask_token: str | None = None


def is_gguf(path: Path) -> bool:
    """Whether the path is a GGUF file."""
    return path.suffix == ".gguf"


def _gguf(path: Path) -> dict[str, Any]:
    if not is_gguf(path):
        return {}
    if find_spec("gguf") is None:
        raise UserError(f"{path.name} needs the gguf package to be read", fix="pip install gguf.")
    return {"gguf_file": path.name}


def open_causal_tokenizer(path: Path, name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that comes with a causal model, or another by name."""
    if name is not None or not is_gguf(path):
        return load_tokenizer(name or str(path), add_mask=False)
    try:
        return AutoTokenizer.from_pretrained(path.parent, trust_remote_code=False, **_gguf(path))
    except UserError:
        raise
    except Exception as error:  # malformed files raise nearly anything
        raise UserError(
            f"cannot read the tokenizer in {path}", first_line(error), fix="Copy or fetch it once more."
        ) from None


def adapted(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    how: Adaptation,
    dtype: torch.dtype | None,
    quantize: bool = False,
) -> PreTrainedModel:
    """The model of `path` (a folder or a GGUF file) with attention in both directions and a row for the mask.

    The tokenizer gets a mask token if it has none. The configuration says what was done: is_causal, shifted_logits,
    mask_token_id.

    Raises:
        UserError: unreadable, or a kind that cannot look ahead.
    """
    gguf = _gguf(path)
    folder = path.parent if gguf else path
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf)
    except Exception as error:  # configurations check themselves, with errors of many kinds
        raise UserError(
            f"the configuration of {path} cannot be used", first_line(error), fix="Copy or fetch it once more."
        ) from None
    check_head(str(path), config)
    config.is_causal = False
    backbone = load_weights(folder, config, dtype, quantize, **gguf)
    if type(backbone.get_input_embeddings()) is not nn.Embedding:
        raise UserError(
            f"{path} cannot be used", "its input embeddings are scaled or otherwise special", fix="Take another model."
        )
    mask_id = _mask_of(backbone, tokenizer, how)
    backbone.config.mask_token_id = mask_id
    setattr(backbone.config, SHIFT, how.shift)
    _check(backbone, str(path))
    return backbone


def _mask_of(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Adaptation) -> int:
    """The id of the mask token; its row of the table is there."""
    used = torch.tensor(sorted(tokenizer.get_vocab().values()))
    if how.mask_token is not None:
        if how.mask_token not in tokenizer.get_vocab():
            raise UserError(
                f"--mask-token {how.mask_token}",
                "the tokenizer has no such token",
                fix="Name one of its tokens, or leave it out.",
            )
        tokenizer.mask_token = how.mask_token
    elif tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    mask_id = tokenizer.mask_token_id
    rows = len(backbone.get_input_embeddings().weight)
    if mask_id >= rows:
        backbone.resize_token_embeddings(mask_id + 1, pad_to_multiple_of=_MULTIPLE, mean_resizing=False)
    table, head = backbone.get_input_embeddings().weight, backbone.get_output_embeddings().weight
    for weight in [table] if head is table else [table, head]:
        _start_at_mean(weight, used[used < rows], [*range(rows, len(weight)), *([] if mask_id in used else [mask_id])])
    return mask_id


@torch.no_grad()
def _start_at_mean(weight: Tensor, used: Tensor, rows: list[int]) -> None:
    """Put the mean of the rows that have a token into those that never had one."""
    weight[rows] = weight[used.to(weight.device)].float().mean(0).to(weight.dtype)


@torch.no_grad()
def _check(backbone: PreTrainedModel, name: str) -> None:
    """Refuse a network that attends to the left only, whatever its configuration says, or does more than it shows."""
    what = f"{name} cannot become a denoiser"
    kind = backbone.config.model_type
    ids = torch.arange(1, 9, device=backbone.device)[None] % backbone.config.vocab_size
    changed = ids.clone()
    changed[0, -1] = 0
    try:
        hidden, other = (backbone.base_model(input_ids=x, use_cache=False).last_hidden_state for x in (ids, changed))
        ours, theirs = (x.float() for x in (backbone.get_output_embeddings()(hidden), backbone(input_ids=ids).logits))
    except Exception as error:  # networks of other kinds take other arguments
        raise UserError(what, first_line(error), fix="Take another model.") from None
    if torch.equal(hidden[0, 0], other[0, 0]):
        raise UserError(what, f"a {kind} attends to the left only", fix="Take another model.")
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-2 * float(theirs.abs().max())):
        raise UserError(what, f"a {kind} does more than one product after its last layer", fix="Take another model.")
