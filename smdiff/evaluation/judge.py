"""A causal model's opinion of texts: how likely they are (generative perplexity), and features of them (MAUVE).

The texts go through the model's own tokenizer, whole. A text longer than its context is read in windows that overlap by
half, so that every token is scored once, with at least half a context before it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from smdiff.errors import UserError, first_line
from smdiff.files import cache_folder, write_whole
from smdiff.models.adapt import is_gguf, open_causal_tokenizer
from smdiff.models.causal import context_length, load_weights
from smdiff.models.denoiser import Denoiser
from smdiff.models.load import default_device, is_causal_model, load, local_path, weights_digest
from smdiff.ranks import gather, is_first, share, turns

# Names by which everyone knows them, and the hub's own.
_HUB = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
# Logits that exist at a time.
_LOGITS_AT_ONCE = {True: 2**26, False: 2**29}
# Tokens whose hidden states exist at a time; few on a CPU, so that progress shows.
_STATES_AT_ONCE = {True: 2**11, False: 2**14}
# Tokens of a model that names no limit.
_ANY_LENGTH = 1 << 20
_VOCABULARY = "Put tokenizer.json, or vocab.json and merges.txt, into {}."
_WORDS = "One text among many others, with some punctuation: 1, 2, 3."


class _Window(NamedTuple):
    """A part of a text: its tokens, the first of them that is scored, and whose it is."""

    ids: list[int]
    first: int
    text: int


class Judge:
    """A causal model with its tokenizer.

    Args:
        name: a folder, a GGUF file, a hub name, or a run of `smdiff pretrain --objective ar`.
        device: of the model.

    Attributes:
        end: the tokenizer's end-of-text, as it is written in a text.
        facts: what a result says of it.

    Raises:
        UserError: no causal model, or no usable tokenizer.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        path = local_path(_HUB.get(name, name) if not Path(name).exists() else name)
        self.name, self._device = name, device or default_device()
        self._begin: list[int] = []
        self._tokenizer: PreTrainedTokenizerBase
        self._denoiser: Denoiser | None = None
        if is_causal_model(path):
            self._open(name, path)
        else:
            found = load(name, device=self._device)
            if not found.denoiser.causal:
                why = "it fills masks, and says nothing about a whole text"
                raise UserError(f"{name} cannot judge", why, "Take a causal model.")
            self._denoiser, self._tokenizer = found.denoiser, found.tokenizer
            self._context, self._begin = found.denoiser.max_length, [found.denoiser.mask_id]
        self.end = str(self._tokenizer.eos_token or "\n\n")
        self.facts = {"model": name, "weights": weights_digest(str(path)), "dtype": "float32", "context": self._context}

    def _open(self, name: str, path: Path) -> None:
        gguf: dict[str, Any] = {"gguf_file": path.name} if is_gguf(path) else {}
        folder = path.parent if gguf else path
        try:
            self._tokenizer = open_causal_tokenizer(path, None)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf)
        except UserError as error:
            fix = error.fix if gguf else _VOCABULARY.format(folder)
            raise UserError(f"{name} cannot judge", f"no tokenizer: {error.why or error.what}", fix) from None
        except Exception as error:  # configurations check themselves, with errors of many kinds
            raise UserError(f"{name} cannot judge", first_line(error), fix="Copy or fetch it once more.") from None
        # A tokenizer whose vocabulary is missing opens all the same, and knows nothing.
        ids = self._tokenizer(_WORDS, add_special_tokens=False)["input_ids"]
        unknown = self._tokenizer.unk_token_id
        if not ids or sum(i == unknown for i in ids) > len(ids) // 2:
            why = "its tokenizer knows no words: a vocabulary file is missing"
            raise UserError(f"{name} cannot judge", why, _VOCABULARY.format(folder))
        if max(self._tokenizer.get_vocab().values()) >= config.vocab_size:
            raise UserError(
                f"{name} cannot judge",
                "its tokenizer has ids that the model has not",
                fix="Put the model's own tokenizer there.",
            )
        self._context = context_length(config) or _ANY_LENGTH
        self._load: Callable[[], PreTrainedModel] = partial(load_weights, folder, config, torch.float32, **gguf)

    @cached_property
    def _model(self) -> PreTrainedModel:
        return self._load().to(self._device)

    def _tokens(self, text: str) -> list[int]:
        """With what the tokenizer puts before a text, and without what it may put behind it."""
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        if len(ids) > 1 and ids[-1] == end and not text.endswith(self.end):
            ids = ids[:-1]
        return self._begin + ids

    def _outputs(self, ids: Tensor, valid: Tensor, logits: bool) -> Tensor:
        """Logits (B, L, V), or last hidden states (B, L, D), of tokens (B, L) with padding on the right."""
        if self._denoiser is not None:
            everywhere = torch.ones_like(valid)
            hidden = self._denoiser.hidden(ids, everywhere, valid=valid)
            found = self._denoiser.logits(hidden) if logits else hidden
            return found.view(*ids.shape, -1)
        if logits:
            return self._model(input_ids=ids, attention_mask=valid.long()).logits
        return self._model.base_model(input_ids=ids, attention_mask=valid.long()).last_hidden_state

    def _batches(self, windows: list[_Window], at_once: int) -> Iterator[tuple[list[_Window], Tensor, Tensor]]:
        """Windows of like length together, padded on the right: them, their ids (B, L), what is no padding."""
        waiting = sorted(windows, key=lambda w: len(w.ids))
        while waiting:
            length = len(waiting[-1].ids)
            count = max(1, at_once // length)
            part, waiting = waiting[-count:], waiting[:-count]
            ids = torch.tensor([w.ids + [0] * (length - len(w.ids)) for w in part], device=self._device)
            sizes = torch.tensor([len(w.ids) for w in part], device=self._device)
            yield part, ids, torch.arange(length, device=self._device) < sizes[:, None]

    @torch.inference_mode()
    def nll(self, texts: list[str], advance: Callable[[int], None] = lambda texts: None) -> tuple[Tensor, Tensor]:
        """-log p of each text in nats, and how many tokens that is, two (N,).

        The first token has nothing before it unless the model has a begin-of-text; a text of no other token scores 0
        tokens.
        """
        windows = [w for i, text in enumerate(texts) for w in self._windows(self._tokens(text), i)]
        total, count = torch.zeros(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.long)
        vocabulary = len(self._tokenizer)
        at_once = _LOGITS_AT_ONCE[self._device == "cpu"] // vocabulary
        for turn in turns(list(self._batches(windows, at_once))):
            (part, ids, valid), counts = share(turn)
            logits = self._outputs(ids[:, :-1], valid[:, :-1], True).float()
            nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            places = torch.arange(1, ids.shape[1], device=self._device)
            first = torch.tensor([w.first for w in part], device=self._device)
            scored = (places >= first[:, None]) & valid[:, 1:]
            sums = (nll.double() * scored).sum(1).cpu()
            for window, value, tokens in zip(part, sums, scored.sum(1).cpu(), strict=True) if counts else ():
                total[window.text] += value
                count[window.text] += tokens
            advance(sum(w.first == 1 for part, *_ in turn for w in part))
        return torch.stack(gather(total)).sum(0), torch.stack(gather(count)).sum(0)

    def _windows(self, ids: list[int], text: int) -> Iterator[_Window]:
        begin, scored = 0, 1
        while True:
            end = min(len(ids), begin + self._context + 1)  # nothing follows the last one: it is not read
            yield _Window(ids[begin:end], scored - begin, text)
            if end == len(ids):
                return
            begin, scored = begin + self._context // 2, end

    @torch.inference_mode()
    def features(self, texts: list[str], advance: Callable[[int], None] = lambda texts: None) -> np.ndarray:
        """(N, D) last hidden states at the last token of each text, cut to the model's context (as MAUVE has them).

        They are kept in the user's cache, by the model's weights and the texts.
        """
        about = repr((self.facts, texts)).encode("utf-8", "surrogatepass")
        path = cache_folder() / f"features-{hashlib.sha256(about).hexdigest()[:24]}.npy"
        kept = _kept(path, len(texts))
        if all(gather(kept is not None)) and kept is not None:
            advance(len(texts))
            return kept
        # An empty text is its end.
        windows = [
            _Window((self._tokens(text) or self._tokens(self.end))[: self._context], 0, i)
            for i, text in enumerate(texts)
        ]
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for turn in turns(list(self._batches(windows, _STATES_AT_ONCE[self._device == "cpu"]))):
            (part, ids, valid), _ = share(turn)
            hidden = self._outputs(ids, valid, False)
            last = hidden[torch.arange(len(part), device=hidden.device), valid.sum(1) - 1].float().cpu()
            for (windows, *_), rows in zip(turn, gather(last), strict=False):  # as many as the turn has
                for window, row in zip(windows, rows, strict=True):
                    found[window.text] = row
                advance(len(windows))
        features = torch.stack(found).numpy()
        if is_first():
            _keep(path, features)
        return features


def _kept(path: Path, texts: int) -> np.ndarray | None:
    """The features in a file, if it is there and whole."""
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if len(found) == texts else None


def _keep(path: Path, features: np.ndarray) -> None:
    def write(to: Path) -> None:
        with to.open("wb") as file:
            np.save(file, features, allow_pickle=False)

    with contextlib.suppress(OSError):  # without a cache they are only made again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
