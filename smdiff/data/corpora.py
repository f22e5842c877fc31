"""Corpora: built in, from files, or from the hub, as `datasets` with one document a row.

Held-out data is split off by whole documents (a file, a row) and by their content: a document is held out if its hash
says so. So every run holds out the same documents, also after documents were added, copies never land on both sides,
and a smaller held-out share is part of a larger one. A corpus of a single document gives its last part.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from smdiff.data.hub import Documents, from_hub, text_set_from_hub
from smdiff.data.text_sets import TextSet, detokenizer, text_set
from smdiff.errors import UserError, first_line, said
from smdiff.files import gunzip

# Documents read from a stream to find held-out ones.
_STREAM_HELD_OUT = 200
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text", ".tex", ".html", ".c", ".h", ".js", ".java", ".rs", ".go")
_TABLE_SUFFIXES = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet"}

MARKOV_STATES = 32
MARKOV_PROBABILITIES = (0.6, 0.3, 0.1)
_MARKOV_SYMBOLS = "abcdefghijklmnopqrstuvwxyz012345"
_MARKOV_CHAINS, _MARKOV_CHAIN_LENGTH = 64, 65_536


@dataclass(frozen=True)
class Corpus:
    """A training and a held-out part, each with a "text" column.

    Attributes:
        name: as the user wrote it.
        documents: all of them, before anything was held out.
        sha256: of all documents in order; None for a stream, which nobody has read to its end.
        own_split: whether the held-out part is the source's own split.
        default_tokenizer: what suits the data when the user names none.
    """

    name: str
    documents: Documents
    train: Documents
    valid: Documents
    sha256: str | None
    own_split: bool
    default_tokenizer: str | None = None


@dataclass(frozen=True)
class MarkovChain:
    """The chain of `markov`: 32 states, each with 3 random successors of probability 0.6, 0.3 and 0.1."""

    successors: np.ndarray  # (32, 3)

    @classmethod
    def drawn(cls, seed: int) -> MarkovChain:
        rng = np.random.default_rng([seed, MARKOV_STATES])
        rows = [rng.choice(MARKOV_STATES, len(MARKOV_PROBABILITIES), replace=False) for _ in range(MARKOV_STATES)]
        return cls(np.stack(rows))

    @property
    def matrix(self) -> np.ndarray:
        """(32, 32) transition probabilities."""
        matrix = np.zeros((MARKOV_STATES, MARKOV_STATES))
        for row, successors in enumerate(self.successors):
            matrix[row, successors] = MARKOV_PROBABILITIES
        return matrix

    def stationary(self) -> np.ndarray:
        """(32,) long-run probabilities of the states, from a uniform start."""
        return np.full(MARKOV_STATES, 1 / MARKOV_STATES) @ np.linalg.matrix_power(self.matrix, 4096)

    def entropy(self, length: int) -> float:
        """Nats a token of a sequence of `length`, started in the stationary state: the best any model can do."""
        p = self.stationary()
        first = -float((p[p > 0] * np.log(p[p > 0])).sum())
        branch = np.array(MARKOV_PROBABILITIES)
        rate = -float((branch * np.log(branch)).sum())
        return (first + (length - 1) * rate) / length

    def documents(self, seed: int) -> list[str]:
        """Independent chains, one symbol a state."""
        rng = np.random.default_rng([seed, 1])
        branches = rng.choice(len(MARKOV_PROBABILITIES), (_MARKOV_CHAIN_LENGTH, _MARKOV_CHAINS), p=MARKOV_PROBABILITIES)
        state = rng.choice(MARKOV_STATES, _MARKOV_CHAINS, p=self.stationary())
        states = np.empty((_MARKOV_CHAIN_LENGTH, _MARKOV_CHAINS), dtype=np.uint8)
        for step, branch in enumerate(branches):
            states[step] = state
            state = self.successors[state, branch]
        symbols = np.frombuffer(_MARKOV_SYMBOLS.encode(), dtype=np.uint8)
        return [symbols[chain].tobytes().decode() for chain in states.T]


def markov_seed(spec: str) -> int:
    """The chain's seed in `markov` or `markov:SEED`."""
    _, _, seed = spec.partition(":")
    if not (seed or "0").isdigit():
        raise UserError(f"--data {spec}", "the seed of a Markov chain is a number", "Write markov or markov:3.")
    return int(seed or "0")


def _standard_library() -> Iterator[Path]:
    """The .py files of the standard library, without its tests, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        if not skipped.intersection(path.relative_to(root).parts):
            yield path


def _source(path: Path) -> str | None:
    """A Python file's text in its declared encoding; None if it has none."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def _python_sources() -> list[str]:
    return [text for path in _standard_library() if (text := _source(path))]


def _python_docs() -> list[str]:
    """The prose that comes with Python: pydoc's topics, and each module's docstrings as one document."""
    from pydoc_data.topics import topics

    documents = list(topics.values())
    for text in _python_sources():
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        strings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        if prose := "\n\n".join(s for s in strings if s):
            documents.append(prose)
    return documents


def _markov(spec: str) -> list[str]:
    seed = markov_seed(spec)
    return MarkovChain.drawn(seed).documents(seed)


def _suffix(path: Path) -> str:
    """The suffix that tells the format, before .gz."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gunzip(raw) if path.suffix == ".gz" else raw).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", fix="Convert it, or leave it out of --data.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}", said(error), "Leave it out of --data, or fetch it once more.") from None


def exists(spec: str) -> bool:
    """Whether there is such a file or folder; unlike `Path.exists`, also of a name too long for one."""
    return os.path.exists(os.path.expanduser(spec))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def load_tables(path: Path) -> list[datasets.Dataset]:
    """The rows of the jsonl, json and parquet files at or under `path`, with all their columns: a table a suffix."""
    files = _files(path)
    found = {suffix: [str(p) for p in files if _suffix(p) == suffix] for suffix in _TABLE_SUFFIXES}
    try:
        return [datasets.load_dataset(_TABLE_SUFFIXES[s], data_files=f, split="train") for s, f in found.items() if f]
    except Exception as error:  # `datasets` wraps every reader's own errors, and some are about nothing at all
        empty = isinstance(error, StopIteration) or "no data" in str(error)
        reason = "it is empty" if empty else first_line(error.__cause__ or error)
        # Arrow counts rows from 0; everyone else, and all else that we say, from 1.
        reason = re.sub(r"in row (\d+)$", lambda found: f"in row {int(found[1]) + 1}", reason)
        raise UserError(f"cannot read {path}", reason, fix="Mend the file, or leave it out.") from None


def _text_column(table: Documents, column: str, source: str) -> Documents:
    """The column alone, named "text"."""
    names = table.column_names
    if names is None or column in names:
        kept = table.select_columns([column])
        kept = kept if column == "text" else kept.rename_column(column, "text")
        feature = (kept.features or {}).get("text")
        kind = "string" if feature is None else getattr(feature, "dtype", type(feature).__name__.lower())
        if kind not in ("string", "large_string"):
            raise UserError(
                f"column {column!r} of {source} is no text", f"it holds {kind}", "Pick one with --text-column."
            )
        return kept.cast_column("text", datasets.Value("string"))
    raise UserError(
        f"{source} has no column {column!r}", f"its columns are {', '.join(names)}", "Pick one with --text-column."
    )


def _read_files(path: Path, column: str) -> datasets.Dataset:
    """A file or folder as documents: a text file is one, a row of a table is one."""
    texts = [p for p in _files(path) if (s := _suffix(p)) in _TEXT_SUFFIXES or (p == path and s not in _TABLE_SUFFIXES)]
    parts: list[datasets.Dataset] = []
    if texts:
        parts.append(datasets.Dataset.from_dict({"text": [_read_text(p) for p in texts]}))
    parts += [_text_column(table, column, str(path)) for table in load_tables(path)]
    if not parts:
        raise UserError(
            f"no data in {path}",
            f"looked for {', '.join([*_TEXT_SUFFIXES, *_TABLE_SUFFIXES])}, also with .gz",
            fix="Give a folder with such files.",
        )
    return datasets.concatenate_datasets(parts)


def _named(name: str, of: TextSet, file: str, streaming: bool, scored: bool) -> tuple[Documents, Documents | None]:
    """A text set by name, from the hub or from a file of it: rows of a table, or lines of text."""
    if file:
        path = Path(file).expanduser()
        if not path.exists():
            raise UserError(f"--data {name}={file}", "no such file or folder", fix="Check the path.")
        table = _suffix(path) in _TABLE_SUFFIXES or path.is_dir()
        lines = None if table else _lines(_read_text(path), of.line_end)
        found: list[Documents | None] = [lines or _read_files(path, of.column), None]
    else:
        try:
            rows = text_set_from_hub(name, of, streaming, scored)
        except UserError as error:
            fix = f"Give it as a file: --data {name}=FILE (lines of text, jsonl or parquet)."
            raise UserError(f"--data {name}", error.why, fix) from None
        found = [t and _text_column(t, of.column, name) for t in rows]
    undo = detokenizer(of.rules)
    documents, held_out = (t and t.map(lambda row: {"text": undo(row["text"])}) for t in found)
    assert documents is not None
    return _with_text(documents), held_out and _with_text(held_out)


def _lines(text: str, end: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [line + end for line in text.split("\n")]})


def texts(documents: Documents) -> Iterator[str]:
    """The text of each document."""
    for row in documents:
        yield row["text"]


def digest(text: str) -> bytes:
    """SHA-256 of a document."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _draw(digest: bytes) -> float:
    """A number in [0, 1) from the content of a document."""
    return int.from_bytes(digest[:6], "big") / 2**48


def split_by_content(
    rows: datasets.Dataset, digests: list[bytes], fraction: float
) -> tuple[datasets.Dataset, datasets.Dataset] | None:
    """Training and held-out rows, at least one each; equal rows land on the same side. None if all are equal."""
    draws = [_draw(digest) for digest in digests]
    if len(set(draws)) < 2:
        return None
    bar = min(max(fraction, min(draws) + 1e-15), max(draws))
    sides = [[i for i, d in enumerate(draws) if (d < bar) == held_out] for held_out in (False, True)]
    return rows.select(sides[0]), rows.select(sides[1])


def _split(documents: datasets.Dataset, fraction: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Whole documents held out; a single document is cut once, near the end, at a paragraph if there is one."""
    if sides := split_by_content(documents, [digest(text) for text in texts(documents)], fraction):
        return sides
    text = documents[0]["text"]
    cut = int(len(text) * (1 - fraction))
    paragraph = text.find("\n\n", cut)
    cut = paragraph + 2 if paragraph != -1 and paragraph + 2 < len(text) else cut
    one = datasets.Dataset.from_dict
    return one({"text": [text[:cut]]}), one({"text": [text[cut:]]})


_BUILT_IN = {"python-stdlib": _python_sources, "python-docs": _python_docs}


def is_built_in(spec: str) -> bool:
    """Whether `spec` names data that smdiff makes by itself."""
    return spec in _BUILT_IN or _is_markov(spec)


def _is_markov(spec: str) -> bool:
    return spec == "markov" or spec.startswith("markov:")


def check_spec(spec: str) -> None:
    """Refuse a data name that cannot work, before anything is loaded: a path that looks like one and is not there."""
    if not spec:
        raise UserError("--data is empty", fix="Name built-in data, a file, a folder or a hub dataset.")
    if _is_markov(spec):
        markov_seed(spec)
    if not exists(spec) and text_set(spec) is not None:
        return
    suffixes = (*_TEXT_SUFFIXES, *_TABLE_SUFFIXES, ".gz")
    looks_like_path = spec.startswith((".", "/", "~")) or Path(spec).suffix in suffixes
    if not is_built_in(spec) and looks_like_path and not exists(spec):
        raise UserError(f"--data {spec}", "no such file or folder", fix="Check the path.")


def load_documents(
    spec: str, column: str = "text", streaming: bool = False, scored: bool = False
) -> tuple[Documents, Documents | None]:
    """The documents of `spec`, and the held-out ones where the source has its own split.

    Args:
        scored: take of a text set on the hub only the split that perplexities are reported on.

    Raises:
        UserError: nothing there, unreadable, empty, or without the column.
    """
    check_spec(spec)
    if is_built_in(spec):
        texts = _BUILT_IN[spec]() if spec in _BUILT_IN else _markov(spec)
        return datasets.Dataset.from_dict({"text": texts}), None
    if not exists(spec) and (named := text_set(spec)) is not None:
        documents, held_out = _named(spec.partition("=")[0], *named, streaming, scored)
    elif exists(spec):
        documents, held_out = _with_text(_read_files(Path(spec).expanduser(), column)), None
    else:
        documents, held_out = (t and _with_text(_text_column(t, column, spec)) for t in from_hub(spec, streaming))
    if isinstance(documents, datasets.Dataset) and len(documents) == 0:
        raise UserError(
            f"--data {spec}", "there is no text in it", fix="Check the file, or name its column with --text-column."
        )
    return documents, held_out


def _with_text(documents: Documents) -> Documents:
    """Without the documents that are empty or null."""
    return documents.filter(lambda text: bool(text and text.strip()), input_columns="text")


def load_corpus(
    spec: str,
    *,
    valid_spec: str | None = None,
    valid_fraction: float = 0.05,
    column: str = "text",
    streaming: bool = False,
    scored: bool = False,
) -> Corpus:
    """Training and held-out documents of `spec`; for `scored` see `load_documents`.

    Held out are the documents of `valid_spec` where given, else the source's own held-out split, else a share.
    """
    documents, own = load_documents(spec, column, streaming, scored)
    stream = isinstance(documents, datasets.IterableDataset)
    sha256 = None if stream else hashlib.sha256(b"".join(map(digest, texts(documents)))).hexdigest()
    train, held_out = documents, own
    if valid_spec is not None:
        other, split = load_documents(valid_spec, column, scored=True)
        held_out = split or other
    if held_out is None and stream:
        train = documents.filter(lambda text: _draw(digest(text)) >= valid_fraction, input_columns="text")
        held_out = documents.filter(lambda text: _draw(digest(text)) < valid_fraction, input_columns="text")
        held_out = held_out.take(_STREAM_HELD_OUT)
    elif held_out is None:
        train, held_out = _split(documents, valid_fraction)
    named = not exists(spec) and text_set(spec) is not None
    name = spec.partition("=")[0] if named else spec
    return Corpus(name, documents, train, held_out, sha256, own is not None, "symbols" if _is_markov(spec) else None)
