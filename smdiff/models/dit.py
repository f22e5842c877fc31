"""MDLM's diffusion transformer as a `transformers` model, under its original tensor names.

Architecture of "Simple and Effective Masked Diffusion Language Models" (arXiv 2406.07524, appendix) after DiT (arXiv
2212.09748): pre-norm blocks, rotary attention over all positions, and adaptive layer norm driven by a
conditioning vector. Masked diffusion here is not conditioned on time, so that vector is one constant for the
whole batch; its shifts and scales then fold into the layer norms and its gates into the output projections, which
saves four passes over the activations a block.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Cache, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from smdiff.diffusion.prediction import FORBIDDEN

_FREQUENCIES = 256


class DiTConfig(PretrainedConfig):
    """Shape of a DiT. The defaults are MDLM's public 169M model without its vocabulary.

    Args:
        vocab_size: tokens including the mask token.
        hidden_size: width D; divisible by `num_attention_heads`, with an even head size (rotary).
        num_hidden_layers: blocks.
        cond_dim: width of the conditioning vector.
        dropout: on both residual branches.
        max_position_embeddings: training length, in tokens.
        mask_token_id: the absorbing state; of a causal model the token that a text starts from.
        is_causal: attention to the left only, for an autoregressive model of the same shape.
    """

    model_type = "smdiff-dit"

    def __init__(
        self,
        vocab_size: int = 50258,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        cond_dim: int = 128,
        dropout: float = 0.1,
        max_position_embeddings: int = 1024,
        mask_token_id: int | None = None,
        is_causal: bool = False,
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.cond_dim = cond_dim
        self.dropout = dropout
        self.max_position_embeddings = max_position_embeddings
        self.mask_token_id = vocab_size - 1 if mask_token_id is None else mask_token_id
        self.is_causal = is_causal
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


def _modulated_norm(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * (1 + scale) + shift, with shift and scale (1 or B, D)."""
    shift, scale = shift.to(weight.dtype), scale.to(weight.dtype)  # under autocast they come in half precision
    if shift.shape[0] == 1:
        return F.layer_norm(x, weight.shape, weight * (1 + scale[0]), shift[0])
    return F.layer_norm(x, weight.shape, weight) * (1 + scale[:, None]) + shift[:, None]


def _gated_linear(layer: nn.Linear, x: Tensor, gate: Tensor) -> Tensor:
    """gate * layer(x), with gate (1 or B, D)."""
    if gate.shape[0] == 1:
        bias = None if layer.bias is None else layer.bias * gate[0]
        return F.linear(x, layer.weight * gate[0][:, None], bias)
    return layer(x) * gate[:, None]


class _ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""


class _Norm(nn.Module):
    """Scale of a layer norm without bias; applied in `_modulated_norm`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class _Embedding(nn.Module):
    """Token embeddings under MDLM's tensor name."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, dim))

    @property
    def weight(self) -> Tensor:
        """(V, D), under the name that other embeddings have."""
        return self.embedding

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.embedding)


class _TimestepEmbedder(nn.Module):
    """Sinusoidal features of sigma through a two-layer network: (B,) -> (B, cond_dim)."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, sigma: Tensor) -> Tensor:
        half = _FREQUENCIES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=sigma.device) / half
        angles = sigma[:, None].float() * torch.exp(-math.log(10_000) * exponents)
        features = torch.cat([angles.cos(), angles.sin()], -1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


def _rotary(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Factors of `_rotate` for the rotary angles (RoFormer, base 10,000) of positions (..., L): two
    (..., L, 1, head_dim), the same for all heads."""
    frequencies = 10_000 ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim)
    angles = positions[..., None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last axis of (B, L, H, head_dim)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class _Block(GradientCheckpointingLayer):
    """Attention and MLP, each with a modulated norm before and a gate after."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        dim = config.hidden_size
        self.index, self.heads, self.dropout = index, config.num_attention_heads, config.dropout
        self.is_causal = config.is_causal
        self.norm1 = _Norm(dim)
        self.attn_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.norm2 = _Norm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.adaLN_modulation = _ZeroLinear(config.cond_dim, 6 * dim)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: Tensor | None = None,
        cache: Cache | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, -1)
        b, length, _ = x.shape
        qkv = self.attn_qkv(_modulated_norm(x, self.norm1.weight, shift1, scale1))
        qk, v = qkv.view(b, length, 3 * self.heads, -1).split([2 * self.heads, self.heads], 2)
        q, k = _rotate(qk, *(r.to(qk.dtype) for r in rotary)).transpose(1, 2).chunk(2, 1)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        causal = self.is_causal and attend is None and length > 1
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, is_causal=causal)
        attended = attended.transpose(1, 2)
        if at is not None:
            x, attended = x[at], attended[at]
        attended = _gated_linear(self.attn_out, attended.flatten(-2), gate1)
        x = x + F.dropout(attended, self.dropout, self.training)
        wide = self.mlp[1](self.mlp[0](_modulated_norm(x, self.norm2.weight, shift2, scale2)))
        return x + F.dropout(_gated_linear(self.mlp[2], wide, gate2), self.dropout, self.training)


class _OutputLayer(nn.Module):
    """Modulated norm and the projection onto the vocabulary."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = _Norm(config.hidden_size)
        self.linear = _ZeroLinear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = _ZeroLinear(config.cond_dim, 2 * config.hidden_size)


class DiT(PreTrainedModel):
    """The backbone: `encode` (B, L, D) embeddings, then `decode` any rows of the result into logits.

    Keeping the two apart is what lets callers pay for logits at masked positions only.
    """

    config_class = DiTConfig
    base_model_prefix = ""
    _no_split_modules: ClassVar = ["_Block"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.vocab_embed = _Embedding(config.vocab_size, config.hidden_size)
        self.sigma_map = _TimestepEmbedder(config.cond_dim)
        self.blocks = nn.ModuleList(_Block(config, i) for i in range(config.num_hidden_layers))
        self.output_layer = _OutputLayer(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """adaLN-zero: every block starts as the identity, and the first prediction is uniform."""
        bound = 1 / math.sqrt(self.config.hidden_size)
        if isinstance(module, _Embedding):
            nn.init.uniform_(module.embedding, -bound, bound)
        elif isinstance(module, _ZeroLinear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        elif isinstance(module, _Norm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.vocab_embed

    def condition(self, sigma: Tensor | None) -> Tensor:
        """(1 or B, cond_dim) conditioning vector; `sigma` (B,) None means sigma = 0, no time conditioning."""
        if sigma is None:
            sigma = torch.zeros(1, device=self.vocab_embed.embedding.device)
        return F.silu(self.sigma_map(sigma))

    def encode(
        self,
        embeddings: Tensor,
        sigma: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Run the blocks over input embeddings (B, L, D) -> hidden states (B, L, D), or (N, D) of those asked for.

        Args:
            sigma: (B,) as in MDLM; None is no time conditioning.
            attention_mask: (B, K) true where a key may be seen; None where all may. K = L without a cache.
            position_ids: (B or 1, L) positions; None counts from 0.
            past_key_values: takes the keys and values of each block, and says which ones to attend to; a causal
                model goes on one position at a time with it.
            at: rows and columns, two (N,), of the states that are wanted; the last block computes no others. Without
                `sigma`.
        """
        condition = self.condition(sigma)
        if position_ids is None:
            position_ids = torch.arange(embeddings.shape[1], device=embeddings.device)
        rotary = _rotary(position_ids, self.config.hidden_size // self.config.num_attention_heads)
        attend = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        if self.config.is_causal and attend is not None:
            attend = attend.expand(-1, -1, embeddings.shape[1], -1).tril()
        x = embeddings
        for block in self.blocks:
            x = block(x, condition, rotary, attend, past_key_values, at if block is self.blocks[-1] else None)
        return x

    def decode(self, hidden: Tensor, sigma: Tensor | None = None, forbidden: Tensor | None = None) -> Tensor:
        """Logits (..., V) of hidden states: any (..., D) rows without time conditioning, (B, L, D) with `sigma` (B,).

        `forbidden` holds ids that are never chosen; done in the bias, where it costs nothing.
        """
        return F.linear(*self.before_logits(hidden, sigma, forbidden))

    def before_logits(
        self, hidden: Tensor, sigma: Tensor | None = None, forbidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the last product of `decode` is made of: normed hidden states, weight (V, D) and bias (V,)."""
        layer = self.output_layer
        shift, scale = layer.adaLN_modulation(self.condition(sigma)).chunk(2, -1)
        bias = layer.linear.bias
        if forbidden is not None:
            bias = bias.index_fill(0, forbidden, FORBIDDEN)
        return _modulated_norm(hidden, layer.norm_final.weight, shift, scale), layer.linear.weight, bias

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, sigma: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, V) at every position, from ids (B, L) or embeddings (B, L, D); `sigma` (B,) as in MDLM."""
        if inputs_embeds is None:
            inputs_embeds = self.vocab_embed(input_ids)
        return self.decode(self.encode(inputs_embeds, sigma), sigma)


AutoConfig.register(DiTConfig.model_type, DiTConfig)
AutoModel.register(DiTConfig, DiT)
