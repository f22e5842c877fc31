"""Rows to fine-tune on: chats, prompts with responses, or text, from one source or a weighted mixture of several.

A row is its tokens and how many of them are the prompt, which is never masked. Held-out rows are picked by content,
as in `corpora`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from smdiff import __version__
from smdiff.data import corpora
from smdiff.data.hub import from_hub
from smdiff.data.packing import pack
from smdiff.data.prompts import _tokens
from smdiff.data.templates import render
from smdiff.errors import UserError, first_line

# Columns looked for where the user names none; the first found are taken.
_KNOWN = {
    "chat": ["messages"],
    "prompt": ["prompt,response", "prompt,completion", "instruction,input,response", "instruction,response",
               "instruction,input,output", "instruction,output", "question,answer", "query,response"],
    "text": ["text"],
}  # fmt: skip
_PICK = "Pick with --messages-column, --prompt-column with --response-column, or --text-column."
_PART = re.compile(r"(.+):(\d+\.?\d*(?:[eE]-?\d\d?)?|\.\d+)")
_ROLES = {"HUMAN": "user", "ASSISTANT": "assistant", "human": "user", "gpt": "assistant"}
_INT = datasets.Value("int32")
_TYPES = (datasets.List(_INT), _INT, _INT, datasets.Value("string"), datasets.Value("binary"))
_FEATURES = datasets.Features(zip(("input_ids", "prompt_length", "length", "problem", "digest"), _TYPES, strict=True))


@dataclass(frozen=True)
class Format:
    """How rows are read. None takes what the data and the tokenizer suggest.

    Attributes:
        kind: "auto", "chat", "prompt" or "text".
        prompt_column: several, separated by commas, are joined by a blank line; empty ones are left out.
        chat: put prompts and responses into the tokenizer's chat template; None: if it has one.
        skip_bad: leave out rows that cannot be used instead of refusing them.

    Raises:
        UserError: options that contradict each other.
    """

    kind: str = "auto"
    messages_column: str = "messages"
    prompt_column: str | None = None
    response_column: str | None = None
    text_column: str = "text"
    chat: bool | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if bool(self.prompt_column) != bool(self.response_column):
            given, missing = ("prompt", "response") if self.prompt_column else ("response", "prompt")
            raise UserError(f"--{given}-column without --{missing}-column", fix="Give both.")
        if self.kind != "auto":
            self.check_used({self.kind})

    @property
    def named(self) -> dict[str, list[str]]:
        """The columns that the user named, by the kind of data they are for."""
        prompts = [p.strip() for p in (self.prompt_column or "").split(",") if p.strip()]
        columns = {
            "prompt": [*prompts, self.response_column] if self.response_column else [],
            "chat": [self.messages_column] if self.messages_column != Format.messages_column else [],
            "text": [self.text_column] if self.text_column != Format.text_column else [],
        }
        return {kind: names for kind, names in columns.items() if names}

    def check_used(self, kinds: set[str]) -> None:
        """Refuse columns named for other kinds of data."""
        if unused := [kind for kind in self.named if kind not in kinds]:
            option = "messages" if unused[0] == "chat" else unused[0]
            raise UserError(
                f"--{option}-column has no effect",
                f"the data is read as {' and '.join(sorted(kinds))}",
                fix="Leave it out, or say --format.",
            )

    def columns(self, names: list[str], source: str) -> tuple[str, list[str]]:
        """The kind of a table with these columns, and those it is read from: the messages', or prompts' and response's.

        Raises:
            UserError: the columns named, or any looked for, are not there.
        """
        known = [(k, columns.split(",")) for k, some in _KNOWN.items() if self.kind in ("auto", k) for columns in some]
        for kind, columns in self.named.items() or known:
            if set(columns) <= set(names):
                return kind, columns
        missing = [column for columns in self.named.values() for column in columns if column not in names]
        looked_for = "none of the columns looked for"
        if self.kind != "auto":
            looked_for = f"not the columns of --format {self.kind} ({' or '.join(_KNOWN[self.kind])})"
        lacks = f"no column {missing[0]!r}" if missing else looked_for
        raise UserError(f"{source} has {lacks}", f"its columns are {', '.join(names)}", _PICK)


@dataclass(frozen=True)
class Source:
    """One source, tokenised. Both parts have the columns input_ids (list of int) and prompt_length (int).

    Attributes:
        sha256: of the rows in order, as they were before tokenisation.
        kind: "chat", "prompt" or "text".
        dropped: why rows were left out, and how many.
        weight: its share of the mixture.
    """

    name: str
    train: datasets.Dataset
    valid: datasets.Dataset
    sha256: str
    kind: str
    dropped: dict[str, int]
    weight: float = 1.0


def parse_mixture(spec: str) -> list[tuple[str, float]]:
    """Names and weights, which sum to 1, of `a:0.7,b:0.3`; a name alone has weight 1.

    Raises:
        UserError: a part without a weight above 0, or a source named twice.
    """
    parts = [_PART.fullmatch(part.strip()) for part in spec.split(",")]
    if corpora.exists(spec) or (len(parts) == 1 and (corpora.is_built_in(spec) or not parts[0])):
        return [(spec, 1.0)]
    weights = {part[1]: float(part[2]) for part in parts if part}
    if len(weights) < len(parts) or not all(weights.values()):
        why = "each part of a mixture needs a name of its own and a weight above 0"
        raise UserError(f"--data {spec}", why, "Write a.jsonl:0.7,b.jsonl:0.3.")
    return [(name, weight / sum(weights.values())) for name, weight in weights.items()]


class _Unusable(Exception):
    """A row that cannot be used, and why."""


def _need(condition: Any, problem: str) -> None:
    if not condition:
        raise _Unusable(problem)


@dataclass(frozen=True)
class _Reader:
    """A row of a table as `_FEATURES`, for `datasets.map`, which finds its earlier result by these fields."""

    tokenizer: PreTrainedTokenizerBase
    kind: str
    in_template: bool
    version: str = __version__

    def __call__(self, *values: Any) -> dict[str, Any]:
        ids: list[int] = []
        prompt_length, problem = 0, None
        values = tuple(_without_null(value) for value in values)
        try:
            messages = _messages(values[0]) if self.kind == "chat" else _pair(values)
            _need(messages[-1]["content"].strip(), "the response is blank")
            ids, prompt_length = (_chat_ids if self.in_template else _pair_ids)(self.tokenizer, messages)
            _need(prompt_length < len(ids), "the response has no token of its own")
            _need(self.tokenizer.mask_token_id not in ids, "it holds the mask token")
        except _Unusable as error:
            ids, prompt_length, problem = [], 0, str(error)
        content = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
        return dict(zip(_FEATURES, (ids, prompt_length, len(ids), problem, corpora.digest(content)), strict=True))


def _without_null(value: Any) -> Any:
    """Without the keys that a row has only because other rows have them."""
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _messages(raw: Any) -> list[dict[str, Any]]:
    _need(isinstance(raw, list) and raw, "it has no messages")
    _need(all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in raw), "a message has no role")
    _need(all(isinstance(m.get("content"), str) for m in raw), "a message's content is no text")
    messages = [{**m, "role": _ROLES.get(m["role"], m["role"])} for m in raw]
    _need(messages[-1]["role"] == "assistant", "the last message is not the assistant's")
    _need(len(messages) > 1, "there is no message before the response")
    return messages


def _pair(values: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Columns of prompts and one of a response as a conversation."""
    _need(all(value is None or isinstance(value, str) for value in values), "the prompt or the response is no text")
    *prompts, response = (value or "" for value in values)
    prompt = "\n\n".join(p for p in prompts if p.strip())
    _need(prompt, "the prompt is blank")
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> tuple[list[int], int]:
    """Tokens of a conversation in the chat template, and how many come before the response."""
    try:
        prompt, whole = render(tokenizer, messages[:-1], answer=True), render(tokenizer, messages)
    except Exception as error:  # templates are programs and raise what they like
        raise _Unusable(f"the chat template refuses it ({first_line(error)})") from None
    encode = partial(tokenizer, add_special_tokens=False, verbose=False)
    before: list[int] = encode(prompt)["input_ids"]
    if whole.startswith(prompt):
        # Apart, so that the prompt's tokens are those that sampling feeds.
        return before + encode(whole[len(prompt) :])["input_ids"], len(before)
    ids = encode(whole)["input_ids"]
    return ids, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False)))


def _pair_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> tuple[list[int], int]:
    """Tokens of a prompt and its response without a template, and how many are the prompt's."""
    before = _tokens(tokenizer, messages[0]["content"])
    response = tokenizer(messages[1]["content"], add_special_tokens=False, verbose=False)["input_ids"]
    return [*before, *response, tokenizer.eos_token_id], len(before)


def _table(name: str) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The rows of a table and its own held-out ones, if the hub has them; no rows if `name` is text, not a table."""
    if corpora.is_built_in(name):
        return None, None
    if not corpora.exists(name):
        return from_hub(name)
    tables = corpora.load_tables(Path(name).expanduser())
    try:
        return datasets.concatenate_datasets(tables) if tables else None, None
    except ValueError as error:
        raise UserError(
            f"cannot read {name}",
            f"its files do not go together ({first_line(error)})",
            fix="Give them one by one, as a mixture.",
        ) from None


@dataclass(frozen=True)
class _Loader:
    """Sources by name. `fraction` of one without a held-out part of its own is held out; 0: nothing."""

    tokenizer: PreTrainedTokenizerBase
    format: Format
    max_length: int
    fraction: float

    def load(self, name: str) -> Source:
        rows, own = _table(name)
        if rows is None and self.format.kind in ("chat", "prompt"):
            why = f"it cannot be read as {self.format.kind}"
            raise UserError(f"{name} holds text, not rows", why, "Give a .jsonl, .json or .parquet file.")
        if rows is None:
            return self._text(name, self.format.text_column)
        kind, columns = self.format.columns(rows.column_names, name)
        return self._text(name, columns[0]) if kind == "text" else self._rows(name, rows, own, kind, columns)

    def _text(self, name: str, column: str) -> Source:
        corpus = corpora.load_corpus(name, valid_fraction=self.fraction, column=column)
        split = corpus.own_split or self.fraction
        train = self._packed(name, corpus.train if split else corpus.documents)
        valid = self._packed(f"{name} (held-out)", corpus.valid) if split else train.select([])
        return Source(name, train, valid, str(corpus.sha256), "text", {})

    def _packed(self, name: str, documents: datasets.Dataset) -> datasets.Dataset:
        try:
            packed = pack(documents, self.tokenizer, self.max_length, name)
        except UserError as error:
            raise UserError(error.what, error.why, "Add text, or lower --max-length.") from None
        return packed.add_column("prompt_length", np.zeros(len(packed), dtype=np.int32))

    def _rows(
        self, name: str, rows: datasets.Dataset, own: datasets.Dataset | None, kind: str, columns: list[str]
    ) -> Source:
        if not rows:
            raise UserError(f"--data {name}", "there is no row in it", fix="Check the file.")
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if not has_template and (kind == "chat" or self.format.chat):
            fix = "Give one with --chat-template FILE, or read prompts and responses without a template."
            raise UserError(f"--data {name} needs a chat template", "the tokenizer has none", fix)
        in_template = kind == "chat" or (has_template if self.format.chat is None else self.format.chat)
        reader = _Reader(self.tokenizer, kind, in_template)
        train, sha256, dropped = self._usable(name, rows, reader, columns)
        if own:
            valid, _, more = self._usable(f"{name} (held-out)", own, reader, columns)
            dropped += more
        elif not self.fraction:
            valid = train.select([])
        elif sides := corpora.split_by_content(train, train["digest"][:], self.fraction):
            train, valid = sides
        else:
            raise UserError(f"{name} has nothing to hold out", "all its rows are one row", "Give --valid-data.")
        train, valid = (part.select_columns(["input_ids", "prompt_length"]) for part in (train, valid))
        return Source(name, train, valid, sha256, kind, dict(+dropped))

    def _usable(
        self, name: str, rows: datasets.Dataset, reader: _Reader, columns: list[str]
    ) -> tuple[datasets.Dataset, str, Counter[str]]:
        """The rows that can be used, as `_FEATURES`; the hash of all rows; why the others cannot, and how many."""
        rows = rows.select_columns(columns)
        read = rows.map(reader, input_columns=columns, remove_columns=rows.column_names, features=_FEATURES)
        problems, lengths = read["problem"][:], np.array(read["length"][:])
        bad = [index for index, problem in enumerate(problems) if problem]
        if len(bad) == len(read) or (bad and not self.format.skip_bad):
            fix = _PICK if len(bad) == len(read) else "--skip-bad-rows leaves them out."
            why = f"row {bad[0] + 1}: {problems[bad[0]]}"
            raise UserError(f"{name}: {len(bad)} of {len(read)} rows cannot be used", why, fix)
        dropped = Counter(problems[index] for index in bad)
        # A row that cannot be used has no tokens.
        fits = (lengths > 0) & (lengths <= self.max_length)
        if not fits.any():
            shortest = f"the shortest has {lengths[lengths > 0].min()}"
            raise UserError(f"{name}: no row has at most {self.max_length} tokens", shortest, "Raise --max-length.")
        dropped[f"longer than {self.max_length} tokens"] = int((lengths > self.max_length).sum())
        return read.select(np.flatnonzero(fits)), hashlib.sha256(b"".join(read["digest"])).hexdigest(), dropped


def check_sources(spec: str, valid_spec: str | None) -> list[tuple[str, float]]:
    """The mixture, once no name in it, nor of the held-out data, is of a file that is not there.

    Raises:
        UserError: one is, or the mixture is none.
    """
    mixture = parse_mixture(spec)
    for name in [*(name for name, _ in mixture), *([] if valid_spec is None else [valid_spec])]:
        corpora.check_spec(name)
    return mixture


def load_sources(
    spec: str,
    tokenizer: PreTrainedTokenizerBase,
    fmt: Format,
    *,
    max_length: int,
    valid_spec: str | None = None,
    valid_fraction: float = 0.05,
) -> list[Source]:
    """The sources of a mixture, tokenised; rows of more than `max_length` tokens are left out, never cut.

    Held out is a share of each source, or its own held-out split, or all of `valid_spec`, which the first one gets.

    Raises:
        UserError: a source that cannot be read, or rows in it that cannot be used.
    """
    mixture = check_sources(spec, valid_spec)
    names = [name for name, _ in mixture] + ([] if valid_spec is None else [valid_spec])
    loader = _Loader(tokenizer, fmt, max_length, valid_fraction if valid_spec is None else 0)
    loaded = [loader.load(name) for name in names]
    fmt.check_used({source.kind for source in loaded})
    sources = [replace(source, weight=weight) for source, (_, weight) in zip(loaded, mixture, strict=False)]
    if valid_spec is not None:
        held = loaded[-1]
        sources = [replace(source, valid=source.valid.select([])) for source in sources]
        dropped = dict(Counter(sources[0].dropped) + Counter(held.dropped))
        sources[0] = replace(sources[0], valid=held.valid or held.train, dropped=dropped)
    return sources
