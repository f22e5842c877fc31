"""Rows to fine-tune on: chats, prompts with responses, or text, from one source or a weighted mixture of several.

A row is its tokens and how many of them are the prompt, which is never masked. Held-out rows are picked by content,
as in `corpora`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.compute
import torch
from transformers import PreTrainedTokenizerBase

from smdiff import __version__
from smdiff.data.corpora import (
    _TABLE_SUFFIXES,
    _digest,
    _split,
    _suffix,
    _text_column,
    _with_text,
    check_spec,
    is_built_in,
    load_documents,
    texts,
)
from smdiff.data.packing import Shuffled, pack
from smdiff.data.prompts import _tokens
from smdiff.errors import UserError, first_line

KINDS = ("auto", "chat", "prompt", "text")
POLICIES = ("learn", "ignore")
_PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
)
_ROLES = {"HUMAN": "user", "ASSISTANT": "assistant", "human": "user", "gpt": "assistant"}
_COLUMN_OPTIONS = "--messages-column, --prompt-column with --response-column, or --text-column"
_FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "prompt_length": datasets.Value("int32"),
        "problem": datasets.Value("string"),
        "digest": datasets.Value("string"),
    }
)
# Positions whose sources are drawn together.
_CHUNK = 4096


@dataclass(frozen=True)
class Format:
    """How rows are read. None takes what the data and the tokenizer suggest.

    Attributes:
        kind: "auto", "chat", "prompt" or "text".
        prompt_column: several, separated by commas, are joined by a blank line; empty ones are left out.
        chat: put prompts and responses into the tokenizer's chat template; None: if it has one.
        skip_bad: leave out rows that cannot be used instead of refusing them.
    """

    kind: str = "auto"
    messages_column: str = "messages"
    prompt_column: str | None = None
    response_column: str | None = None
    text_column: str = "text"
    chat: bool | None = None
    skip_bad: bool = False

    @property
    def named(self) -> dict[str, list[str]]:
        """The columns that the user named, by the kind of data they are for."""
        prompts = [p.strip() for p in (self.prompt_column or "").split(",") if p.strip()]
        columns = {
            "prompt": [*prompts, self.response_column] if prompts and self.response_column else [],
            "chat": [self.messages_column] if self.messages_column != Format.messages_column else [],
            "text": [self.text_column] if self.text_column != Format.text_column else [],
        }
        return {kind: names for kind, names in columns.items() if names}


@dataclass(frozen=True)
class Source:
    """One source, tokenised. Both parts have the columns input_ids (list of int) and prompt_length (int).

    Attributes:
        weight: its share of the mixture.
        sha256: of the rows in order, as they were before tokenisation.
        kind: "chat", "prompt" or "text".
        dropped: why rows were left out, and how many.
    """

    name: str
    weight: float
    train: datasets.Dataset
    valid: datasets.Dataset
    sha256: str
    kind: str
    dropped: dict[str, int]


class Row(NamedTuple):
    """A row's tokens (L,) int64, the length of its prompt, and the fill that its batch gets if it comes first in it."""

    ids: np.ndarray
    prompt_length: int
    extra: int = 0


def parse_mixture(spec: str) -> list[tuple[str, float]]:
    """Names and weights, which sum to 1, of `a:0.7,b:0.3`; a name alone has weight 1.

    Raises:
        UserError: a part without a weight above 0, or a source named twice.
    """
    if _exists(spec) or "," not in spec:
        name, _, weight = spec.rpartition(":")
        alone = _exists(spec) or is_built_in(spec) or not name or math.isnan(_number(weight))
        return [(spec if alone else name, 1.0)]
    parts = [part.strip().rpartition(":") for part in spec.split(",")]
    weights = [_number(weight) for _, _, weight in parts]
    for (name, _, weight), value in zip(parts, weights, strict=True):
        if not name or not 0 < value < math.inf:
            shown = f"{name}:{weight}" if name else weight
            raise UserError(
                f"--data {shown!r}", "each part of a mixture needs a weight above 0", "Write a.jsonl:0.7,b.jsonl:0.3."
            )
    names = [name for name, _, _ in parts]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--data names {twice[0]} twice", fix="Give it once, with the sum of the weights.")
    return [(name, value / sum(weights)) for name, value in zip(names, weights, strict=True)]


def _exists(spec: str) -> bool:
    return bool(spec) and os.path.exists(os.path.expanduser(spec))  # Path.exists raises where a name is too long


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


class _Unusable(Exception):
    """A row that cannot be used, and why."""


@dataclass(frozen=True)
class _Reader:
    """Rows of a table as tokens, for `datasets.map`, which finds its earlier result by these fields."""

    tokenizer: PreTrainedTokenizerBase
    columns: tuple[str, ...]  # the messages', or the prompts' and the response's
    kind: str
    chat: bool
    version: str = __version__

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in _FEATURES}
        for values in zip(*(batch[column] for column in self.columns), strict=True):
            ids: list[int] = []
            length, problem = 0, None
            try:
                ids, length = self._read(values)
            except _Unusable as error:
                problem = str(error)
            content = json.dumps(_without_null(values), sort_keys=True, ensure_ascii=False, default=str)
            for name, value in zip(found, (ids, length, problem, _digest(content).hex()), strict=True):
                found[name].append(value)
        return found

    def _read(self, values: tuple[Any, ...]) -> tuple[list[int], int]:
        """Tokens, and how many of them are the prompt."""
        if self.kind == "chat":
            ids, length = _chat_ids(self.tokenizer, _messages(_without_null(values[0])))
        else:
            prompt, response = _pair(values)
            pair = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            ids, length = _chat_ids(self.tokenizer, pair) if self.chat else _pair_ids(self.tokenizer, prompt, response)
        if length >= len(ids):
            raise _Unusable("the response has no token of its own")
        if self.tokenizer.mask_token_id in ids:
            raise _Unusable("it holds the mask token")
        return ids, length


def _without_null(value: Any) -> Any:
    """Without the keys that a row has only because other rows have them."""
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list | tuple) else value


def _messages(raw: Any) -> list[dict[str, Any]]:
    if not isinstance(raw, list) or not raw:
        raise _Unusable("it has no messages")
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in raw):
        raise _Unusable("a message has no role")
    if not all(isinstance(m.get("content"), str) for m in raw):
        raise _Unusable("a message's content is no text")
    messages = [{**m, "role": _ROLES.get(m["role"], m["role"])} for m in raw]
    if messages[-1]["role"] != "assistant":
        raise _Unusable("the last message is not the assistant's")
    if not messages[-1]["content"].strip():
        raise _Unusable("the response is blank")
    if len(messages) == 1:
        raise _Unusable("there is no message before the response")
    return messages


def _pair(values: tuple[Any, ...]) -> tuple[str, str]:
    *prompts, response = values
    if not all(value is None or isinstance(value, str) for value in values):
        raise _Unusable("the prompt or the response is no text")
    prompt = "\n\n".join(p for p in prompts if p and p.strip())
    if not prompt:
        raise _Unusable("the prompt is blank")
    if response is None or not response.strip():
        raise _Unusable("the response is blank")
    return prompt, response


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> tuple[list[int], int]:
    """Tokens of a conversation in the chat template, and how many come before the response."""
    try:
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # templates are programs and raise what they like
        raise _Unusable(f"the chat template refuses it ({first_line(error)})") from None
    before = _plain(tokenizer, prompt)
    if whole.startswith(prompt):
        # Apart, so that the prompt's tokens are those that sampling feeds.
        return before + _plain(tokenizer, whole[len(prompt) :]), len(before)
    ids = _plain(tokenizer, whole)
    same = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))
    return ids, same


def _pair_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], int]:
    before = _tokens(tokenizer, prompt)
    return [*before, *_plain(tokenizer, response), tokenizer.eos_token_id], len(before)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _table(name: str) -> tuple[datasets.Dataset, datasets.Dataset | None] | None:
    """The rows of a table, and its own held-out rows where the hub has them; None if `name` is text, not a table."""
    if is_built_in(name):
        return None
    if not _exists(name):
        return _hub(name)
    path = Path(name).expanduser()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    by_kind: dict[str, list[str]] = {}
    for file in files:
        if kind := _TABLE_SUFFIXES.get(_suffix(file)):
            by_kind.setdefault(kind, []).append(str(file))
    try:
        parts = [datasets.load_dataset(kind, data_files=paths, split="train") for kind, paths in by_kind.items()]
        return (datasets.concatenate_datasets(parts), None) if parts else None
    except Exception as error:  # `datasets` wraps every reader's own errors, and some are about nothing at all
        empty = isinstance(error, StopIteration) or "no data" in str(error)
        raise UserError(
            f"cannot read {name}", "it is empty" if empty else first_line(error.__cause__ or error)
        ) from None


def _hub(name: str) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training rows and own held-out rows of `owner/name` or `owner/name/configuration`."""
    owner, _, rest = name.partition("/")
    repository, _, configuration = rest.partition("/")
    try:
        splits = datasets.load_dataset(f"{owner}/{repository}" if rest else owner, configuration or None)
    except Exception as error:  # network, missing name, gated, malformed: one answer for the user
        raise UserError(
            f"--data {name}",
            f"no such file or folder here, and not loaded from the hub ({first_line(error)})",
            "Give a path that exists, or check the name and the network.",
        ) from None
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    return train, next((splits[s] for s in ("validation", "valid", "test") if s in splits), None)


def _check(fmt: Format) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    if fmt.kind not in KINDS:
        raise UserError(f"the data's format {fmt.kind!r}", f"it is one of {', '.join(KINDS)}")
    if bool(fmt.prompt_column) != bool(fmt.response_column):
        given, missing = ("prompt", "response") if fmt.prompt_column else ("response", "prompt")
        raise UserError(f"--{given}-column without --{missing}-column", fix="Give both.")
    if fmt.prompt_column and "prompt" not in fmt.named:
        raise UserError(f"--prompt-column {fmt.prompt_column!r}", "it names no column")
    if fmt.kind != "auto":
        _check_used(fmt, {fmt.kind})


def _check_used(fmt: Format, kinds: set[str]) -> None:
    for kind in fmt.named:
        if kind not in kinds:
            option = {"prompt": "prompt", "chat": "messages", "text": "text"}[kind]
            raise UserError(f"--{option}-column has no effect", f"the data is read as {' and '.join(sorted(kinds))}")


def _columns(names: list[str], fmt: Format, source: str) -> tuple[str, list[str]]:
    """The kind of a table with these columns, and the columns it is read from."""
    has = f"its columns are {', '.join(names)}"
    named = {kind: columns for kind, columns in fmt.named.items() if fmt.kind in ("auto", kind)}
    for kind, columns in named.items():
        if set(columns) <= set(names):
            return kind, columns
    if named:
        missing = next(column for columns in named.values() for column in columns if column not in names)
        raise UserError(f"{source} has no column {missing!r}", has, f"Pick with {_COLUMN_OPTIONS}.")
    if fmt.kind in ("auto", "chat") and fmt.messages_column in names:
        return "chat", [fmt.messages_column]
    if fmt.kind in ("auto", "prompt"):
        for prompt, response in _PAIRS:
            if {prompt, response} <= set(names):
                more = ["input"] if prompt == "instruction" and "input" in names else []
                return "prompt", [prompt, *more, response]
    if fmt.kind in ("auto", "text") and fmt.text_column in names:
        return "text", [fmt.text_column]
    raise UserError(f"{source} has none of the columns looked for", has, f"Pick with {_COLUMN_OPTIONS}.")


class _Loaded(NamedTuple):
    """A source, tokenised; text is already split, as that is done by documents."""

    rows: datasets.Dataset
    own: datasets.Dataset | None  # held out by the source itself
    digests: list[bytes]  # of each of `rows`, to split by; none for text
    sha256: str
    kind: str
    dropped: Counter[str]


def _load(
    name: str, tokenizer: PreTrainedTokenizerBase, fmt: Format, max_length: int, fraction: float | None
) -> _Loaded:
    """`fraction` of a text is held out, if not None. Other rows are split by the caller."""
    table = _table(name)
    if table is None:
        if fmt.kind in ("chat", "prompt"):
            raise UserError(
                f"{name} holds text, not rows",
                f"it cannot be read as {fmt.kind}",
                "Give a .jsonl, .json or .parquet file.",
            )
        return _load_text(*load_documents(name, fmt.text_column), name, tokenizer, max_length, fraction)
    rows, own = table
    if not len(rows):
        raise UserError(f"--data {name}", "there is no row in it")
    kind, columns = _columns(rows.column_names, fmt, name)
    if kind == "text":
        documents, held_out = (t and _with_text(_text_column(t, columns[0], name)) for t in (rows, own))
        return _load_text(documents, held_out, name, tokenizer, max_length, fraction)
    reader = _Reader(tokenizer, tuple(columns), kind, _in_template(tokenizer, fmt, kind, name))
    loaded = _usable(rows, reader, name, max_length, fmt.skip_bad)
    if own is None:
        return loaded
    held_out = _usable(own, reader, f"{name} (held-out)", max_length, fmt.skip_bad)
    return loaded._replace(own=held_out.rows, dropped=loaded.dropped + held_out.dropped)


def _in_template(tokenizer: PreTrainedTokenizerBase, fmt: Format, kind: str, name: str) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if not has_template and (kind == "chat" or fmt.chat):
        raise UserError(
            f"--data {name} needs a chat template",
            "the tokenizer has none",
            "Give one with --chat-template FILE, or read prompts and responses without a template.",
        )
    return has_template if fmt.chat is None else fmt.chat


def _usable(rows: datasets.Dataset, reader: _Reader, name: str, max_length: int, skip_bad: bool) -> _Loaded:
    """The rows that can be used, tokenised, with the others counted."""
    read = rows.select_columns(list(reader.columns)).map(
        reader, batched=True, remove_columns=list(reader.columns), features=_FEATURES
    )
    problems = read["problem"][:]
    bad = [index for index, problem in enumerate(problems) if problem]
    if bad and (not skip_bad or len(bad) == len(read)):
        fix = f"Pick columns with {_COLUMN_OPTIONS}." if len(bad) == len(read) else "--skip-bad-rows leaves them out."
        raise UserError(
            f"{name}: {len(bad)} of {len(read)} rows cannot be used", f"row {bad[0] + 1}: {problems[bad[0]]}", fix
        )
    lengths = pyarrow.compute.list_value_length(read.data.column("input_ids")).to_numpy()
    good = [index for index, problem in enumerate(problems) if not problem]
    short = [index for index in good if lengths[index] <= max_length]
    if not short:
        raise UserError(
            f"{name}: no row has at most {max_length} tokens",
            f"the shortest has {lengths[good].min()}",
            "Raise --max-length.",
        )
    dropped = Counter(problems[index] for index in bad)
    if len(short) < len(good):
        dropped[f"longer than {max_length} tokens"] = len(good) - len(short)
    digests = [bytes.fromhex(digest) for digest in read["digest"]]
    sha256 = hashlib.sha256(b"".join(digests)).hexdigest()
    kept = read.select(short).remove_columns(["problem", "digest"])
    return _Loaded(kept, None, [digests[index] for index in short], sha256, reader.kind, dropped)


def _load_text(
    documents: datasets.Dataset,
    own: datasets.Dataset | None,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    fraction: float | None,
) -> _Loaded:
    if not len(documents):
        raise UserError(f"--data {name}", "there is no text in it")
    sha256 = hashlib.sha256(b"".join(map(_digest, texts(documents)))).hexdigest()
    if own is None and fraction is not None:
        documents, own = _split(documents, fraction)
    held_out = None if own is None else _packed(own, tokenizer, length, f"{name} (held-out)")
    return _Loaded(_packed(documents, tokenizer, length, name), held_out, [], sha256, "text", Counter())


def _packed(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, length: int, name: str) -> Any:
    try:
        packed = pack(documents, tokenizer, length, name)
    except UserError as error:
        raise UserError(error.what, error.why, "Add text, or lower --max-length.") from None
    return packed.add_column("prompt_length", np.zeros(len(packed), dtype=np.int32))


def _parts(loaded: _Loaded, name: str, fraction: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and held-out rows; equal rows land on the same side."""
    if loaded.own is not None:
        return loaded.rows, loaded.own
    draws = [int.from_bytes(digest[:6], "big") / 2**48 for digest in loaded.digests]
    if len(set(draws)) < 2:
        raise UserError(f"{name} has nothing to hold out", "all its rows are one row", "Give --valid-data.")
    # At least one row on each side.
    bar = min(max(fraction, min(draws) + 1e-15), max(draws))
    sides = [[i for i, draw in enumerate(draws) if (draw < bar) == held_out] for held_out in (False, True)]
    return loaded.rows.select(sides[0]), loaded.rows.select(sides[1])


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
    _check(fmt)
    mixture = parse_mixture(spec)
    for name in [*(name for name, _ in mixture), *([] if valid_spec is None else [valid_spec])]:
        check_spec(name)
    sources: list[Source] = []
    for name, weight in mixture:
        loaded = _load(name, tokenizer, fmt, max_length, valid_fraction if valid_spec is None else None)
        nothing = loaded.rows.select([])
        train, valid = _parts(loaded, name, valid_fraction) if valid_spec is None else (loaded.rows, nothing)
        sources.append(Source(name, weight, train, valid, loaded.sha256, loaded.kind, dict(loaded.dropped)))
    kinds = {source.kind for source in sources}
    if valid_spec is not None:
        held = _load(valid_spec, tokenizer, fmt, max_length, None)
        dropped = dict(Counter(sources[0].dropped) + held.dropped)
        sources[0] = replace(sources[0], valid=held.rows if held.own is None else held.own, dropped=dropped)
        kinds.add(held.kind)
    _check_used(fmt, kinds)
    return sources


def valid_rows(sources: list[Source], limit: int) -> list[Row]:
    """At most `limit` held-out rows: each source's share by weight, one at least, spread evenly over the source."""
    counts = [0] * len(sources)
    for _ in range(min(limit, sum(len(s.valid) for s in sources))):
        left = [i for i, source in enumerate(sources) if counts[i] < len(source.valid)]
        counts[min(left, key=lambda i: (counts[i] > 0, (counts[i] + 0.5) / sources[i].weight))] += 1
    rows: list[Row] = []
    for source, count in zip(sources, counts, strict=True):
        if count:
            taken = source.valid.select(np.linspace(0, len(source.valid) - 1, count).round().astype(int))
            rows += [Row(np.asarray(r["input_ids"], dtype=np.int64), int(r["prompt_length"])) for r in taken]
    return rows


class Mixture(torch.utils.data.Dataset):
    """`rows` training rows; the one at a position depends on (seed, position) alone, however many there are.

    A source is drawn by its weight and gives the next row of its permutation, as in `packing.Shuffled`.
    """

    def __init__(
        self, sources_train: list[datasets.Dataset], weights: list[float], rows: int, seed: int, max_extra: int = 0
    ) -> None:
        self.sources = [Shuffled(source, rows, seed) for source in sources_train]
        self.weights = np.asarray(weights, dtype=float) / sum(weights)
        self.rows, self.seed, self.max_extra = rows, seed, max_extra
        # How often each source was drawn before chunk 0, 1, ...
        self._before = [np.zeros(len(self.sources), dtype=np.int64)]
        self._chunk, self._draws, self._ranks = -1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.rows

    def _drawn(self, chunk: int) -> np.ndarray:
        """(4096,) the source of each position of a chunk."""
        return np.random.default_rng([self.seed, 7, chunk]).choice(len(self.sources), _CHUNK, p=self.weights)

    def _place(self, position: int) -> tuple[int, int]:
        """The source at a position, and how often it was drawn before."""
        chunk, offset = divmod(position, _CHUNK)
        while len(self._before) <= chunk:
            draws = self._drawn(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(draws, minlength=len(self.sources)))
        if chunk != self._chunk:
            self._chunk, self._draws, self._ranks = chunk, self._drawn(chunk), np.empty(_CHUNK, dtype=np.int64)
            for source, before in enumerate(self._before[chunk]):
                own = self._draws == source
                self._ranks[own] = before + np.arange(own.sum())
        return int(self._draws[offset]), int(self._ranks[offset])

    def _extra(self, position: int) -> int:
        if not self.max_extra:
            return 0
        return int(np.random.default_rng([self.seed, 11, position]).integers(self.max_extra + 1))

    def __getitems__(self, positions: list[int]) -> list[Row]:
        places = [self._place(position) for position in positions]
        found: dict[int, Row] = {}
        for number, source in enumerate(self.sources):
            own = [i for i, (drawn, _) in enumerate(places) if drawn == number]
            if own:
                read = source.packed[[source._index(places[i][1]) for i in own]]
                for i, ids, length in zip(own, read["input_ids"], read["prompt_length"], strict=True):
                    found[i] = Row(np.asarray(ids, dtype=np.int64), int(length), self._extra(positions[i]))
        return [found[i] for i in range(len(positions))]

    def __getitem__(self, position: int) -> Row:
        return self.__getitems__([position])[0]


class Collator:
    """Rows as one batch, filled up with `pad_id` to at most `limit` tokens, or the longest row's where that is more.

    With policy "learn" the fill is part of the response, so that the model learns to end; with "ignore" it is neither
    masked nor attended to.
    """

    def __init__(self, pad_id: int, policy: str, limit: int | None = None) -> None:
        if policy not in POLICIES:
            raise UserError(f"padding {policy!r}", f"it is one of {', '.join(POLICIES)}")
        self.pad_id, self.policy, self.limit = pad_id, policy, limit

    def _length(self, rows: list[Row]) -> int:
        longest = max(len(row.ids) for row in rows)
        learn = self.policy == "learn"
        ends = learn and (rows[0].extra > 0 or any(row.prompt_length for row in rows))
        if not ends and all(len(row.ids) == longest for row in rows):
            return longest  # packed text
        filled = longest + (rows[0].extra if learn else 0)
        filled += -filled % 8
        return filled if self.limit is None else max(longest, min(filled, self.limit))

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """input_ids (B, L) int64, maskable (B, L) bool and, with "ignore" and a fill, valid (B, L) bool: no fill."""
        length = self._length(rows)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        for filled, row in zip(ids, rows, strict=True):
            filled[: len(row.ids)] = torch.from_numpy(row.ids)
        positions = torch.arange(length)
        maskable = positions >= torch.tensor([row.prompt_length for row in rows])[:, None]
        valid = positions < torch.tensor([len(row.ids) for row in rows])[:, None]
        if self.policy == "learn" or valid.all():
            return {"input_ids": ids, "maskable": maskable}
        return {"input_ids": ids, "maskable": maskable & valid, "valid": valid}
