"""A network as a denoiser: ids and feedback in, logits where they are wanted out. Every forward pass is counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from smdiff.diffusion.prediction import FORBIDDEN
from smdiff.diffusion.soft_mask import Feedback, SoftMask
from smdiff.models.cache import BlockCache
from smdiff.models.dit import DiT

# Rows up to which `_few_rows` is worth it.
_FEW = 32


def _few_rows(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (N, D) @ weight (V, D) transposed, as one product for each part of the vocabulary.

    A CPU's matrix product spreads few rows badly over its cores; parts of the vocabulary go about twice as fast.
    """
    vocabulary, width = weight.shape
    parts = next((c for c in range(64, 15, -1) if vocabulary % c == 0), 1)
    split = weight.view(parts, vocabulary // parts, width).transpose(1, 2)
    return torch.bmm(hidden.expand(parts, *hidden.shape), split).transpose(0, 1).reshape(-1, vocabulary)


class Denoiser(nn.Module):
    """Wraps a backbone and, if it has them, its soft-mask scalars.

    Args:
        backbone: a DiT, or a `transformers` causal model whose configuration says `is_causal = False`.
        mask_id: id of the mask token.
        soft_mask: the three scalars, or None for a binary model.
        shift: the output at a position predicts the next one (models adapted from causal ones, such as Dream);
            position 0 is predicted by its own output.
        forbidden: ids that are never predicted; by default the mask alone. A test passes () to compare with code that
            lets a model predict masks.

    Attributes:
        nfe: forward passes of the network since it was last set to 0 (a pass over a batch counts one).
    """

    forbidden: Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        mask_id: int,
        soft_mask: SoftMask | None = None,
        shift: bool = False,
        forbidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.soft_mask = soft_mask
        self.mask_id = mask_id
        self.shift = shift
        ids = torch.tensor([mask_id] if forbidden is None else list(forbidden), dtype=torch.long)
        self.register_buffer("forbidden", ids.to(self.table.device), persistent=False)
        self.nfe = 0

    def with_soft_mask(self, soft_mask: SoftMask) -> Denoiser:
        """The same network with other scalars."""
        forbidden = self.forbidden.tolist()
        other = Denoiser(self.backbone, self.mask_id, soft_mask.to(self.device), self.shift, forbidden)
        return other.train(self.training)

    @property
    def table(self) -> Tensor:
        """(V, D) input embeddings."""
        return self.backbone.get_input_embeddings().weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.table.device

    @property
    def vocab_size(self) -> int:
        """V, the mask token included."""
        return len(self.table)

    @property
    def max_length(self) -> int:
        """The longest text that the model was made for, in tokens."""
        return self.backbone.config.max_position_embeddings

    def embed(
        self, ids: Tensor, blended: Tensor, feedback: Feedback | None = None, scale: float | Tensor = 1.0
    ) -> Tensor:
        """Input embeddings (B, L, D): of `ids` (B, L), with the blend at `blended` (B, L, bool) if there is feedback.

        `feedback` holds one row for each of the N true entries of `blended`, in row-major order; `scale`, one factor or
        (N,), multiplies lambda.
        """
        if feedback is None:
            return nn.functional.embedding(ids, self.table)
        if self.soft_mask is None:
            raise ValueError("feedback was given to a model without soft-mask scalars")
        return self.soft_mask.embed(ids, blended, feedback, self.table, scale)

    def hidden(
        self,
        ids: Tensor,
        where: Tensor,
        feedback: Feedback | None = None,
        scale: float | Tensor = 1.0,
        *,
        blended: Tensor | None = None,
        valid: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """Hidden states (N, D) that predict the N true entries of `where` (B, L, bool), row-major: one forward pass.

        Args:
            ids: (B, L) tokens.
            feedback, scale: as in `embed`, for `blended`.
            blended: (B, L, bool) positions with feedback; by default `where`.
            valid: (B, L, bool) false at left padding, which nothing attends to and no position counts; None for none.
            cache: keys and values of an earlier pass; only its window is computed, and all else is taken from it.
        """
        self.nfe += 1
        blended = where if blended is None else blended
        window = slice(None) if cache is None else cache.window
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        if valid is not None:
            positions = (valid.cumsum(1) - 1).clamp(min=0)
        x = self.embed(ids[:, window], blended[:, window], feedback, scale)
        batch, column = where.nonzero(as_tuple=True)
        if self.shift:
            first = 0 if valid is None else valid.int().argmax(1)[batch]
            column = (column - 1).clamp(min=first)
        # Below 0 only where a comparison leaves out the position before the window: its first reads its own output.
        column = (column - (window.start or 0)).clamp(min=0)
        return self._encode(x, positions[:, window], valid, cache)[batch, column]

    def _encode(self, x: Tensor, positions: Tensor, valid: Tensor | None, cache: BlockCache | None) -> Tensor:
        if isinstance(self.backbone, DiT):
            return self.backbone.encode(x, None, valid, positions, cache)
        return self.backbone.base_model(
            inputs_embeds=x, attention_mask=valid, position_ids=positions, past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state  # fmt: skip

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, D); forbidden ids have `FORBIDDEN`."""
        if isinstance(self.backbone, DiT):
            return self.backbone.decode(hidden, forbidden=self.forbidden)
        head = self.backbone.get_output_embeddings()
        few = hidden.device.type == "cpu" and len(hidden) <= _FEW and not torch.is_grad_enabled()
        plain = type(head) is nn.Linear and head.bias is None
        logits = _few_rows(hidden, head.weight) if few and plain else head(hidden)
        return logits.index_fill_(-1, self.forbidden, FORBIDDEN)

    def forward(
        self, ids: Tensor, where: Tensor, feedback: Feedback | None = None, scale: float | Tensor = 1.0, **context
    ) -> Tensor:
        """Logits (N, V) at the N true entries of `where`, row-major; arguments as in `hidden`."""
        return self.logits(self.hidden(ids, where, feedback, scale, **context))

    def save(self, folder: Path) -> None:
        """Write the weights as a `transformers` folder (safetensors), and `soft_mask.json` beside them."""
        self.backbone.save_pretrained(folder)
        if self.soft_mask is not None:
            self.soft_mask.save(folder)
