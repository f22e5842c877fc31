"""What to write: a prompt to continue, a chat to answer, or a text with spans to fill, as token ids with masks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from smdiff.data.templates import render
from smdiff.errors import UserError, first_line
from smdiff.files import loads

_SPAN = re.compile(r"<mask(?::(\d+))?>")
_KINDS = ("prompt", "infill", "messages")


@dataclass(frozen=True)
class Prompt:
    """One thing to write.

    Attributes:
        shown: the prompt as the user gave it.
        ids: its tokens; in a text to fill, the mask id stands in every span.
        kind: "prompt" and "chat" are followed by new tokens, "infill" holds them, "" is written from nothing.
    """

    shown: str
    ids: list[int]
    kind: str


NOTHING = Prompt("", [], "")


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, begin: bool = True) -> list[int]:
    """Tokens of a text that goes on: without the end mark that some tokenizers add."""
    ids = tokenizer(text, add_special_tokens=begin)["input_ids"]
    while ids and begin and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) and len(ids) > 1:
        if text.endswith(tokenizer.convert_ids_to_tokens(ids[-1])):
            break
        ids.pop()
    return ids


def continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> Prompt:
    """A text to continue."""
    return Prompt(text, _fixed(tokenizer, _tokens(tokenizer, text)), "prompt")


def _fixed(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Tokens that stand: some, and no mask among them."""
    if not ids:
        raise UserError(
            "the prompt is empty", "the tokenizer makes no token of it", "Leave it out to write from nothing."
        )
    if tokenizer.mask_token_id in ids:
        raise UserError("the prompt holds the mask token", "a prompt is not written into", "Use --infill with <mask>.")
    return ids


def infill(tokenizer: PreTrainedTokenizerBase, text: str, mask_id: int) -> Prompt:
    """A text with spans: `<mask>` is one token, `<mask:12>` twelve.

    Raises:
        UserError: no span, or one of no length.
    """
    parts = _SPAN.split(text)
    if len(parts) == 1:
        raise UserError(
            f"--infill {text[:40]!r}", "there is no span in it", "Put <mask> (one token) or <mask:12> where to write."
        )
    ids: list[int] = []
    for index, part in enumerate(parts):
        if index % 2:
            count = int(part or 1)
            if not 1 <= count <= 131072:
                raise UserError(f"<mask:{part}>", "a span has between 1 and 131072 tokens", fix="Write <mask:12>, say.")
            ids += [mask_id] * count
        elif part:
            ids += _tokens(tokenizer, part, begin=index == 0)
    return Prompt(text, ids, "infill")


def chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> Prompt:
    """A conversation to answer, in the tokenizer's chat template.

    Raises:
        UserError: no template, or one that refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("--chat", "the model's tokenizer has no chat template", "Use --prompt with the whole text.")
    try:
        text = render(tokenizer, messages, answer=True)
        shown = messages[-1]["content"]
    except Exception as error:  # templates are programs and raise what they like
        fix = "Mend the messages, or use --prompt with the whole text."
        raise UserError("the chat template refuses the messages", first_line(error), fix) from None
    return Prompt(shown, _fixed(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]), "chat")


def end_ids(tokenizer: PreTrainedTokenizerBase, more: int | list[int] | None = None) -> list[int]:
    """Ids that end a text: end-of-text, what the model's configuration adds, and the end of a chat's turn."""
    ends = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    if getattr(tokenizer, "chat_template", None):
        mark = "smdiff"
        turn = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
        try:
            after = render(tokenizer, turn).rpartition(mark)[2]
        except Exception:  # a template that wants other roles has no turn to find
            after = ""
        following = tokenizer(after, add_special_tokens=False)["input_ids"][:1]
        ends += [i for i in following if i in tokenizer.added_tokens_decoder]
    return list(dict.fromkeys(i for i in ends if i is not None))


def readable(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        # Not splitlines: JSON strings may hold what else counts as the end of a line.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}", getattr(error, "strerror", None) or "not a text file", fix="Check the path."
        ) from None


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(readable(path), 1):
        if not line.strip():
            continue
        try:
            yield number, loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is not JSON", str(error), fix="Mend the line.") from None


def read_prompts(path: Path, tokenizer: PreTrainedTokenizerBase, mask_id: int, as_chat: bool) -> list[Prompt]:
    """The prompts of a file of JSON lines.

    Raises:
        UserError: naming the line that cannot be used.
    """
    prompts = []
    for number, row in _rows(path):
        try:
            prompts.append(_of_row(row, tokenizer, mask_id, as_chat))
        except UserError as error:
            raise UserError(f"{path}, line {number}", str(error)) from None
    if not prompts:
        raise UserError(f"{path} holds no prompt", fix="Write one in each line.")
    return prompts


def _of_row(row: Any, tokenizer: PreTrainedTokenizerBase, mask_id: int, as_chat: bool) -> Prompt:
    row = {"prompt": row} if isinstance(row, str) else row
    kind = next((k for k in _KINDS if isinstance(row, dict) and k in row), None)
    if kind is None or not isinstance(row[kind], list if kind == "messages" else str):
        raise UserError(f"neither a string nor an object with one of {', '.join(_KINDS)}", fix="Mend the line.")
    if kind == "messages":
        return chat(tokenizer, row[kind])
    if kind == "infill":
        return infill(tokenizer, row[kind], mask_id)
    return of_text(tokenizer, row[kind], as_chat)


def of_text(tokenizer: PreTrainedTokenizerBase, text: str, as_chat: bool) -> Prompt:
    """A text to answer, or to continue."""
    return chat(tokenizer, [{"role": "user", "content": text}]) if as_chat else continuation(tokenizer, text)
