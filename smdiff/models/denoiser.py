"""A network as a denoiser: ids and feedback in, logits where they are wanted out. Every forward pass is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from smdiff.diffusion.objective import Scores
from smdiff.diffusion.prediction import FORBIDDEN
from smdiff.diffusion.soft_mask import Feedback, SoftMask
from smdiff.errors import UserError
from smdiff.models import adapters
from smdiff.models.cache import BlockCache
from smdiff.models.causal import context_length
from smdiff.models.dit import DiT
from smdiff.models.head import (
    FEW,
    WeightedNll,
    check_liger,
    few_rows,
    fused_nll,
    in_autocast,
    linear,
    logit_blocks,
)

# For models whose positions have no end.
_ANY_LENGTH = 131072
# Where the output layer is not one linear layer (as with an adapter): elements of logits with gradient up to which they
# are kept for the backward pass, on a CPU (True) and a GPU, and of one block of them beyond that.
_KEPT_LOGITS = {True: 2**24, False: 2**26}
_LOGITS_AT_ONCE = {True: 2**22, False: 2**24}


def _without_adapter(module: nn.Module) -> nn.Module:
    """The layer below peft's wrapper for single trained rows."""
    rows = getattr(module, "token_adapter", None)
    return module if rows is None else rows.base_layer


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
        adapter: the wrapper of the peft adapter whose layers are in the backbone.

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
        adapter: PeftModel | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._adapter = (adapter,)  # not registered: its parameters are the backbone's already
        self.soft_mask = soft_mask
        self.mask_id = mask_id
        self.shift = shift
        ids = torch.tensor([mask_id] if forbidden is None else list(forbidden), dtype=torch.long)
        self.register_buffer("forbidden", ids.to(self.table.device), persistent=False)
        self.nfe = 0
        self._liger = self._compiled = False

    def compile_blocks(self, **options: Any) -> None:
        """Compile the network's repeated blocks, in place: their shapes are fixed, while the number of masks is not.

        `options` are torch.compile's.
        """
        names = set(self.backbone._no_split_modules or ())
        blocks = [m for m in self.backbone.modules() if type(m).__name__ in names]
        if not blocks:
            kind = type(self.backbone).__name__
            raise UserError("--compile", f"a {kind} does not say what its blocks are", "Leave it out.")
        for block in blocks:
            block.compile(**options)
        self._compiled = True

    def use_liger(self) -> None:
        """Take losses with gradient from liger-kernel's fused kernel.

        Raises:
            UserError: it cannot run here, or not with this output layer.
        """
        check_liger()
        if not self._linear_head:
            raise UserError("--liger", "the output layer is adapted or of another kind", "Leave it out.")
        self._liger = True

    @property
    def _linear_head(self) -> bool:
        """Whether logits are one product, and no adapter's besides."""
        return isinstance(self.backbone, DiT) or type(self._head) is nn.Linear

    @property
    def _head(self) -> nn.Module:
        """The output layer of a `transformers` model. A tied one that an adapter wraps differs at the forbidden mask
        only."""
        return _without_adapter(self.backbone.get_output_embeddings())

    def with_soft_mask(self, soft_mask: SoftMask) -> Denoiser:
        """The same network with other scalars."""
        forbidden = self.forbidden.tolist()
        other = Denoiser(self.backbone, self.mask_id, soft_mask.to(self.device), self.shift, forbidden, self.adapter)
        return other.train(self.training)

    @property
    def adapter(self) -> PeftModel | None:
        """The peft wrapper of the backbone, which knows how to save and merge; None without an adapter."""
        return self._adapter[0]

    @property
    def _no_split_modules(self) -> list[str]:
        """The blocks, which accelerate shards one by one."""
        return list(self.backbone._no_split_modules or [])

    @property
    def table(self) -> Tensor:
        """(V, D) input embeddings; the mask's row is `mask_row` where an adapter trains it."""
        return _without_adapter(self.backbone.get_input_embeddings()).weight

    @property
    def mask_row(self) -> Tensor | None:
        """(D,) the mask's embedding where an adapter trains it, None where it is in the table."""
        rows = getattr(self.backbone.get_input_embeddings(), "token_adapter", None)
        return None if rows is None else rows.trainable_tokens_delta["default"][0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.table.device

    @property
    def vocab_size(self) -> int:
        """V, the mask token included."""
        return len(self.table)

    @property
    def causal(self) -> bool:
        """Whether it is autoregressive: outputs predict the next token, and the mask token stands before a text."""
        return isinstance(self.backbone, DiT) and self.backbone.config.is_causal

    @property
    def max_length(self) -> int:
        """The longest text that the model was made for, in tokens."""
        return context_length(self.backbone.config) or _ANY_LENGTH

    def embed(
        self, ids: Tensor, blended: Tensor, feedback: Feedback | None = None, scale: float | Tensor = 1.0
    ) -> Tensor:
        """Input embeddings (B, L, D): of `ids` (B, L), with the blend at `blended` (B, L, bool) if there is feedback.

        `feedback` holds one row for each of the N true entries of `blended`, in row-major order; `scale`, one factor or
        (N,), multiplies lambda.
        """
        if feedback is not None and self.soft_mask is None:
            raise ValueError("feedback was given to a model without soft-mask scalars")
        table, row = self.table, self.mask_row
        if feedback is None:
            x = nn.functional.embedding(ids, table)
        else:
            assert self.soft_mask is not None
            x = self.soft_mask.embed(ids, blended, feedback, table, scale)
        if row is None:
            return x
        # How much of each input is the mask's embedding; peft would copy the whole table to put one row in.
        share = (ids == self.mask_id).to(x.dtype)
        if feedback is not None:
            assert self.soft_mask is not None
            share = share.masked_scatter(blended, 1 - self.soft_mask.blend(feedback, scale).to(x.dtype))
        return x + share[..., None] * (row.to(x.dtype) - table[self.mask_id])

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
        positions = positions[:, window]
        if isinstance(self.backbone, DiT):
            # A compiled block's shapes are fixed, while the number of masks is not.
            if not self._compiled:
                return self.backbone.encode(x, None, valid, positions, cache, (batch, column))
            hidden = self.backbone.encode(x, None, valid, positions, cache)
        else:
            hidden = self.backbone.base_model(
                inputs_embeds=x, attention_mask=valid, position_ids=positions, past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state  # fmt: skip
        return hidden[batch, column]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, D); forbidden ids have `FORBIDDEN`."""
        if self._linear_head and not torch.is_grad_enabled():
            # A DiT's texts should be the same to the bit in a batch of any size: one kind of product for all.
            few = hidden.is_cpu and len(hidden) <= FEW and not isinstance(self.backbone, DiT)
            return (few_rows if few else linear)(*in_autocast(*self._before_logits(hidden)))
        if isinstance(self.backbone, DiT):
            return self.backbone.decode(hidden, forbidden=self.forbidden)
        return self._head(hidden).index_fill_(-1, self.forbidden, FORBIDDEN)

    def score(
        self, hidden: Tensor, targets: Tensor | None, observe: bool = False, weight: Tensor | None = None
    ) -> Scores:
        """-log p of `targets` (N,) from hidden states (N, D), their sum weighted by `weight` (N,), and, if asked, the
        feedback.

        Logits exist for some rows at a time. For the weighted sum their gradient is made along; where that cannot be,
        logits with gradient are kept if they are few, and else computed again for the backward pass.
        """
        grad = torch.is_grad_enabled()
        if grad and weight is not None and targets is not None and self._linear_head and not self._liger:
            total, nll = WeightedNll.apply(*self._before_logits(hidden), targets, weight)
            return Scores(nll, None, total)
        nll, feedback = self._scores(hidden, targets, observe)
        return Scores(nll, feedback, None if nll is None or weight is None else (nll * weight).sum())

    def _scores(self, hidden: Tensor, targets: Tensor | None, observe: bool) -> tuple[Tensor | None, Feedback | None]:
        observer = self.soft_mask if observe else None
        if observe and observer is None:
            raise ValueError("feedback was asked of a model without soft-mask scalars")
        if torch.is_grad_enabled() and targets is not None and not observe:
            return self._nll_with_gradient(hidden, targets), None
        nll, seen = [], []
        with torch.no_grad():
            for part, logits in self._logit_blocks(hidden):
                if targets is not None:
                    nll.append(nn.functional.cross_entropy(logits.float(), targets[part], reduction="none"))
                if observer is not None:
                    seen.append(observer.observe(logits.float()))
        return torch.cat(nll) if nll else None, Feedback.cat(seen) if seen else None

    def _logit_blocks(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Logits of some rows at a time, without gradient; the memory is used again."""
        if self._linear_head:
            yield from logit_blocks(*in_autocast(*self._before_logits(hidden)))
            return
        start = 0
        for h in hidden.split(max(1, _LOGITS_AT_ONCE[hidden.is_cpu] // self.vocab_size)):
            yield slice(start, start + len(h)), self.logits(h)
            start += len(h)

    def _nll_with_gradient(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if self._liger:
            return fused_nll(*self._before_logits(hidden), targets)
        if len(hidden) * self.vocab_size <= _KEPT_LOGITS[hidden.is_cpu]:
            return self._nll(hidden, targets)
        rows = max(1, _LOGITS_AT_ONCE[hidden.is_cpu] // self.vocab_size)
        parts = zip(hidden.split(rows), targets.split(rows), strict=True)
        return torch.cat([checkpoint(self._nll, h, y, use_reentrant=False) for h, y in parts])

    def _before_logits(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (N, D), weight (V, D) and bias (V,) of the last product; forbidden ids are so in the bias."""
        if isinstance(self.backbone, DiT):
            return self.backbone.before_logits(hidden, forbidden=self.forbidden)
        head = self._head
        bias = hidden.new_zeros(self.vocab_size) if head.bias is None else head.bias
        return hidden, head.weight, bias.index_fill(0, self.forbidden, FORBIDDEN)

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(hidden).float(), targets, reduction="none")

    def forward(
        self,
        ids: Tensor,
        where: Tensor,
        feedback: Feedback | None = None,
        scale: float | Tensor = 1.0,
        *,
        targets: Tensor | None = None,
        observe: bool = False,
        weight: Tensor | None = None,
        **context,
    ) -> Scores:
        """Scores at the N true entries of `where`, row-major: one forward pass.

        Args:
            ids, where, feedback, scale, context: as in `hidden`.
            targets: (N,) tokens whose -log p is wanted.
            observe: whether the feedback for a next pass is wanted.
            weight: (N,) the weights of a sum of -log p that is wanted, without gradient.
        """
        return self.score(self.hidden(ids, where, feedback, scale, **context), targets, observe, weight)

    def predict(
        self, ids: Tensor, where: Tensor, feedback: Feedback | None = None, scale: float | Tensor = 1.0, **context
    ) -> Tensor:
        """Logits (N, V) at the N true entries of `where`, row-major; arguments as in `hidden`."""
        return self.logits(self.hidden(ids, where, feedback, scale, **context))

    def save(self, folder: Path) -> None:
        """Write the weights as a `transformers` folder (safetensors), and `soft_mask.json` beside them.

        Of an adapted model the adapter's own files are written, and the configuration that the base has with it.
        """
        if self.adapter is None:
            self.backbone.save_pretrained(folder)
        else:
            adapters.save(self.adapter, folder)
            self.backbone.config.save_pretrained(folder)
        if self.soft_mask is not None:
            self.soft_mask.save(folder)
