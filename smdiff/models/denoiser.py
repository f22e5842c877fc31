"""A network as a denoiser: ids and feedback in, logits at masked positions out. Every forward pass is counted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from smdiff.diffusion.soft_mask import Feedback, SoftMask
from smdiff.models.dit import DiT


class Denoiser(nn.Module):
    """Wraps a backbone and, if it has them, its soft-mask scalars.

    Args:
        backbone: the network.
        mask_id: id of the mask token, which is never predicted.
        soft_mask: the three scalars, or None for a binary model.

    Attributes:
        nfe: forward passes of the network since it was last set to 0 (a pass over a batch counts one).
    """

    def __init__(self, backbone: DiT, mask_id: int, soft_mask: SoftMask | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.soft_mask = soft_mask
        self.mask_id = mask_id
        self.nfe = 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.vocab_embed.embedding.device

    @property
    def vocab_size(self) -> int:
        """V, the mask token included."""
        return self.backbone.config.vocab_size

    def embed(
        self, ids: Tensor, masked: Tensor, feedback: Feedback | None = None, scale: float | Tensor = 1.0
    ) -> Tensor:
        """Input embeddings (B, L, D): of `ids` (B, L), with the blend at `masked` (B, L, bool) if there is feedback.

        `feedback` holds one row for each of the N true entries of `masked`, in row-major order; `scale`, one factor or
        (N,), multiplies lambda.
        """
        if feedback is None:
            return self.backbone.vocab_embed(ids)
        if self.soft_mask is None:
            raise ValueError("feedback was given to a model without soft-mask scalars")
        return self.soft_mask.embed(ids, masked, feedback, self.backbone.vocab_embed.embedding, scale)

    def hidden(
        self, ids: Tensor, masked: Tensor, feedback: Feedback | None = None, scale: float | Tensor = 1.0
    ) -> Tensor:
        """Hidden states (N, D) that predict the N masked positions, row-major: one forward pass."""
        self.nfe += 1
        return self.backbone.encode(self.embed(ids, masked, feedback, scale))[masked]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, D); the mask token's is -inf."""
        return self.backbone.decode(hidden, forbidden=self.mask_id)

    def forward(
        self, ids: Tensor, masked: Tensor, feedback: Feedback | None = None, scale: float | Tensor = 1.0
    ) -> Tensor:
        """Logits (N, V) at the N masked positions, row-major."""
        return self.logits(self.hidden(ids, masked, feedback, scale))

    def save(self, folder: Path) -> None:
        """Write the weights as a `transformers` folder (safetensors), and `soft_mask.json` beside them."""
        self.backbone.save_pretrained(folder)
        if self.soft_mask is not None:
            self.soft_mask.save(folder)
