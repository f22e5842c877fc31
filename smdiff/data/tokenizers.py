"""Tokenizers with an end-of-text and a mask token: made here, trained here, or loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GPT2TokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from smdiff.data.corpora import _MARKOV_SYMBOLS
from smdiff.errors import UserError, first_line

END, MASK = "<|endoftext|>", "<|mask|>"


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, mask_token=MASK, clean_up_tokenization_spaces=False
    )


def _byte_level(model: models.BPE, words: bool) -> Tokenizer:
    """Byte-level tokenizer around `model`; `words` splits text into words first, which merges need and bytes do not."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, end-of-text and mask: 258 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = _byte_level(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]), words=False)
    tokenizer.add_special_tokens([END, MASK])
    return _wrapped(tokenizer)


def symbols_tokenizer() -> PreTrainedTokenizerFast:
    """One id for each of the 32 states of the Markov chain, end-of-text and mask."""
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(_MARKOV_SYMBOLS)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END, MASK])
    return _wrapped(tokenizer)


def train_bpe(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `size` ids, end-of-text and mask (the last id) among them."""
    tokenizer = _byte_level(models.BPE(), words=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([MASK])
    return _wrapped(tokenizer)


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name as it is. Its own code is neither run nor offered to be run.

    Dream's names a class that only its own code has; its files are Qwen2's.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError:
        if not (folder / "merges.txt").exists():
            raise
        return Qwen2Tokenizer.from_pretrained(folder)


def load_tokenizer(name: str, mask_id: int | None = None, add_mask: bool = True) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the hub; if it has no mask token, `mask_id` becomes it, or else one is added.

    With `add_mask` False it is left as it is.
    """
    folder = Path(name).expanduser()
    try:
        if folder.is_dir() and not (folder / "tokenizer_config.json").exists() and (folder / "merges.txt").exists():
            # GPT-2's original two files do not say what they are.
            tokenizer = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
        else:
            tokenizer = open_tokenizer(folder if folder.is_dir() else Path(name))
    except Exception as error:  # missing, malformed, or no network: one answer for the user
        raise UserError(
            f"--tokenizer {name}", f"neither loaded from a folder nor from the hub ({first_line(error)})",
            "Give bytes, bpe:N, or a folder with tokenizer.json or vocab.json and merges.txt.",
        ) from None  # fmt: skip
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"--tokenizer {name}",
            "it has no end-of-text token, which separates documents",
            fix="Take another tokenizer, or give it an eos_token.",
        )
    if tokenizer.mask_token_id is None and mask_id is not None:
        tokenizer.mask_token = tokenizer.convert_ids_to_tokens(mask_id)
    elif tokenizer.mask_token_id is None and add_mask:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def bpe_size(spec: str) -> int:
    """N of `bpe:N`."""
    digits = spec.removeprefix("bpe:")
    if not digits.isdigit() or not 258 <= int(digits) <= 1_000_000:
        raise UserError(
            f"--tokenizer {spec}",
            "bpe:N needs N from 258 (the bytes and two marks) to 1000000",
            fix="Write bpe:4096, say.",
        )
    return int(digits)


def make_tokenizer(spec: str, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer that `spec` names; `texts` is read only where one is trained."""
    if spec == "bytes":
        return bytes_tokenizer()
    if spec == "symbols":
        return symbols_tokenizer()
    if spec.startswith("bpe:"):
        return train_bpe(texts, bpe_size(spec))
    return load_tokenizer(spec)
