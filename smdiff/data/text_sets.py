"""The text sets of zero-shot perplexity by name: where the hub has them, and how MDLM undoes their tokenization.

Rows are documents, as in MDLM (arXiv 2406.07524, section 5): lines of WikiText, sentences of PTB and LM1B, passages,
articles; but empty rows are left out, and there is no end-of-text around a sequence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smdiff.config import nearest
from smdiff.errors import UserError

# Pairs of a pattern and what takes its place, in order.
Rules = Sequence[tuple[str, str]]

_WIKITEXT: Rules = (
    (r"s '", "s'"),
    *((rf" @{re.escape(c)}@ ", c) for c in "-,."),
    *((rf" {re.escape(c)} ", f"{c} ") for c in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)
_PTB: Rules = (
    (r" 's", "'s"),
    (r"s ' ", "s' "),
    (r" n't", "n't"),
    (r" \n ", "\n"),
    (r"\\/", "/"),
    (r" N(?= )", " 1"),
    (r"\$ 1", "$1"),
    (r"# 1", "#1"),
    (r"<unk>", "?"),
)
_LM1B: Rules = (
    (r"(https?) : / / ", r"\1://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    (r" \? ", "? "),
    (r" \?$", "?"),
    (r" ! ", "! "),
    (r" !$", "!"),
    *((rf" {c} ", f"{c} ") for c in ",:;"),
    (r" / ", "/"),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^\(\)]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"([$£]) ", r"\1"),
)
_LAMBADA: Rules = ((r"[“”]", '"'), (r"\A\s*", "\n"), (r"\s*\Z", ""))


@dataclass(frozen=True)
class TextSet:
    """A set by name.

    Attributes:
        hub: owner/name or owner/name/configuration.
        split: the one that perplexities are reported on.
        column: with the text.
        rules: how its tokenization is undone.
        line_end: what ends a row on the hub, and so a line of a file.
        converted: it comes with a script, which nobody should run; the hub's own conversion to parquet is taken.
    """

    hub: str
    split: str
    column: str = "text"
    rules: Rules = ()
    line_end: str = ""
    converted: bool = False


TEXT_SETS = {
    "wikitext-2": TextSet("Salesforce/wikitext/wikitext-2-raw-v1", "validation", rules=_WIKITEXT, line_end="\n"),
    "wikitext-103": TextSet("Salesforce/wikitext/wikitext-103-raw-v1", "validation", rules=_WIKITEXT, line_end="\n"),
    "ptb": TextSet("ptb-text-only/ptb_text_only", "validation", "sentence", _PTB, converted=True),
    "lm1b": TextSet("billion-word-benchmark/lm1b", "test", rules=_LM1B, converted=True),
    "lambada": TextSet("EleutherAI/lambada_openai", "test", rules=_LAMBADA),
    "ag_news": TextSet("fancyzhx/ag_news", "test"),
    "pubmed": TextSet(
        "armanc/scientific_papers/pubmed", "validation", "article", (*_WIKITEXT, *_LM1B), converted=True
    ),
    "arxiv": TextSet(
        "armanc/scientific_papers/arxiv", "validation", "article", (*_WIKITEXT, *_LM1B), converted=True
    ),
}  # fmt: skip


def text_set(spec: str) -> tuple[TextSet, str] | None:
    """The set that NAME or NAME=FILE names, and the file; None for other data.

    Raises:
        UserError: NAME=FILE with an unknown name.
    """
    name, equals, file = spec.partition("=")
    if name in TEXT_SETS:
        return TEXT_SETS[name], file
    if equals and re.fullmatch(r"[\w-]+", name):
        raise UserError(f"--data {spec}", f"no text set is called {name!r}", nearest(name, TEXT_SETS))
    return None


def detokenizer(rules: Rules) -> Callable[[str], str]:
    """A text as it was before it was cut into words."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def detokenize(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return detokenize
