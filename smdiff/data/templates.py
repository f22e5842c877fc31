"""Chat templates: programs of whoever made a tokenizer. `transformers` runs them in Jinja's immutable sandbox, without
access to files or Python; here they get bounds on what they take."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

# Lines of the compiled template that are run, bytes that it takes, characters that it writes.
_LINES, _BYTES, _CHARACTERS = 1_000_000, 256 << 20, 50_000_000
_STATM = Path("/proc/self/statm")


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], answer: bool = False) -> str:
    """A conversation in the tokenizer's chat template.

    Args:
        answer: ends with what begins an answer.

    Raises:
        Exception: of any kind, as templates raise what they like; ValueError or MemoryError if one takes too much.
    """
    template = tokenizer.chat_template
    for source in template.values() if isinstance(template, dict) else [template]:
        _check(str(source))
    with _memory(), _lines():
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    if len(text) > _CHARACTERS:
        raise ValueError(f"it writes more than {_CHARACTERS:,} characters")
    return text


@functools.lru_cache(maxsize=16)
def _check(source: str) -> None:
    """Refuse powers, one of which can take hours. `f(**x)` is none."""
    before = ""
    for _, kind, value in jinja2.Environment().lex(source):
        if value == "**" and before not in ("(", ","):
            raise ValueError("it has a power (**)")
        before = before if kind == "whitespace" else value


@contextlib.contextmanager
def _lines() -> Iterator[None]:
    """A bound on the lines of templates that run."""
    left, before = _LINES, sys.gettrace()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("it does not end")
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        return line if frame.f_code.co_filename == "<template>" else None

    if before is not None:  # a debugger watches
        yield
        return
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(None)


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """A bound on the memory that is taken, where the system has one."""
    try:
        import resource

        used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        bounds = [used + _BYTES, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
