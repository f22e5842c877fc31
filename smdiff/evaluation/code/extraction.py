"""From what a model wrote to the Python program that is graded.

An answer can often be read in several ways: as the rest of a body, as a whole program, with a slip in its indentation.
Every reading is a complete program; the first that compiles and defines the entry point is the answer. Nothing is run.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

VERSION = "v1"

# Codex's stop sequences (arXiv 2107.03374) with the two that bigcode-evaluation-harness adds, "\n@" and "\n```"; and
# bigcode-evaluation-harness's for MBPP.
_STOP_IN_BODY = re.compile(r"\n(?:class|def|#|@|if|print|```)")
_STOP_AFTER_DEFINITION = re.compile(r'\n(?:class|assert|"""|print|if|```)')

# Up to three spaces, as in CommonMark: deeper ones belong to a docstring. A closing fence may sit behind the last line.
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)[^\n]*\n?|(?<=[^\s`])```[ \t]*$", re.M)
_MARKER = r"<\|[^<>|\n]{1,40}\|>|\[/INST\]"
_OPENING = re.compile(rf"\A(?:\s*(?:(?:{_MARKER})(?:assistant\b)?|<s>|</s>))+")
# "</s>" is also HTML, "[INST]" a subscript: a marker only where a line ends or starts.
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|end_?of_?text|eot_id|start_header_id|end|user)\|>|<end_of_turn>|</s>[ \t]*$|^\[INST\]",
    re.M,
)
_START = re.compile(r"^[ \t]*(?:async def |def |class |@|import \w|from [\w.]+ import )", re.M)
# A line that nobody writes in prose: for telling an answer without code from one with broken code.
_CODE = re.compile(
    r"^[ \t]*(?:(?:async )?def \w|class \w+ ?[(:]|import \w+|from [\w.]+ import |(?:return|yield|raise|pass)\b"
    r"|(?:if|elif|for|while|with)\b.*:|(?:try|else|finally):|\.\.\.$|@\w"
    r"|\w[\w.\[\]]*(?:, ?\w[\w.\[\]]*)* ?[-+*/%&|^@<>]*=(?!=)|\w[\w.]*\(.*\)[ \t]*$)",
    re.M,
)
_INVISIBLE: dict[int, str | None] = dict.fromkeys([*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0xAD, 0x2060, 0xFEFF])
_INVISIBLE |= dict.fromkeys(range(0x200B, 0x2010)) | {0xA0: " ", 0x3000: " ", 0x2028: "\n", 0x2029: "\n"}

# No solution is as long, has as many blocks or needs as many characters compiled: bounds on the time for garbage.
_LONGEST, _BLOCKS, _WORK = 20_000, 16, 200_000


def program(answer: str, style: str, prompt: str, entry_point: str | None) -> str:
    """The program in `answer`; "" if it has no code, its first reading as it stands if none is good.

    "completion": `prompt` and the answer up to the first stop sequence. Where the prompt ends inside a function
    (HumanEval) these are Codex's (arXiv 2107.03374), "\\nclass", "\\ndef", "\\n#", "\\nif" and "\\nprint", with "\\n@"
    and "\\n```" from bigcode-evaluation-harness: helpers after the body are cut too, as there. Elsewhere (MBPP) the
    answer is whole definitions, and that harness's stop sequences count from the entry point's `def` onwards.

    "instruct": the assistant's turn was opened with a Python fence and `prompt` (MBPP: the fence alone). Every fenced
    block and the text between them is read in order: as it stands, behind `prompt` or as a program of its own behind
    what precedes the function in `prompt`; then without invisible characters and tabs; then all of it, or its first
    line, indented as a body or a program must be; then from its first definition or import onwards.

    The first good reading counts, else the first with a good prefix of lines, cut to the longest. A reading is good if
    it compiles, has no prose at its top level, and its last definition of `entry_point` returns something.

    Args:
        answer: What the model wrote after the prompt; any text, of which the first 20,000 characters count.
        style: "completion" or "instruct".
        prompt: The task's own text: signature and docstring (HumanEval), or a docstring with the task (MBPP).
        entry_point: The function that is graded; None for the prompt's last, or any.

    Raises:
        ValueError: Unknown style.
    """
    if style not in ("completion", "instruct"):
        raise ValueError(f"style is {style!r}, not 'completion' or 'instruct'")
    answer, stub = _clean(answer)[:_LONGEST], _stub(prompt, entry_point)
    name = stub.name if stub else entry_point
    if style == "completion":
        answer = answer[: _end(answer, stub, name)]
        readings = [prompt + answer, prompt + _visible(answer)] if _CODE.search(_visible(answer)) else []
    else:
        blocks = [block for block in _FENCE.split(answer) if _CODE.search(_visible(block))]
        readings = [reading for block in blocks[:_BLOCKS] for reading in _readings(block, prompt, stub)]
    readings = list(dict.fromkeys(reading.rstrip() + "\n" for reading in readings))

    faults = []
    for reading in readings:
        faults.append(_fault(reading, name))
        if faults[-1] is None:
            return reading
    steps = 1 + _WORK // (1 + sum(map(len, readings)))
    for reading, fault in zip(readings, faults, strict=True):
        if prefix := _prefix(reading, fault, name, steps):
            return prefix
    return readings[0] if readings else ""


def _clean(text: str) -> str:
    """One turn with Unix line ends, without chat markers and what no source file can hold."""
    text = text.encode("utf-8", "ignore").decode().replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    text = _END_OF_TURN.split(_OPENING.sub("", text), maxsplit=1)[0]
    return re.sub(_MARKER, "", text)


def _visible(text: str) -> str:
    """Without invisible characters, and indented by spaces: a repair, since string literals may hold either."""
    return re.sub(r"^[ \t]+", lambda match: match[0].expandtabs(4), text.translate(_INVISIBLE), flags=re.M)


def _stub(prompt: str, name: str | None) -> ast.FunctionDef | None:
    """The function that the prompt leaves to be written; None if the prompt is text alone."""
    tree = _tree(prompt)
    body = tree.body[-1:] if isinstance(tree, ast.Module) else []
    return next((node for node in body if isinstance(node, ast.FunctionDef) and name in (None, node.name)), None)


def _end(answer: str, stub: ast.FunctionDef | None, name: str | None) -> int:
    """Where the first stop sequence begins in a completion."""
    if stub:
        stop = _STOP_IN_BODY.search(answer)
    else:
        definition = re.search(rf"^def {re.escape(name) if name else ''}", answer, re.M)
        stop = _STOP_AFTER_DEFINITION.search(answer, definition.end() if definition else 0)
    return stop.start() if stop else len(answer)


def _readings(block: str, prompt: str, stub: ast.FunctionDef | None) -> list[str]:
    """The programs that a block of an answer can mean, likeliest first."""
    lines = prompt.splitlines(keepends=True)
    context = "".join(lines[: stub.lineno - 1]) if stub else ""
    indent = " " * stub.body[0].col_offset if stub else ""

    def whole(text: str) -> str:
        head = context.strip()
        return context + text if head and not text.lstrip().startswith(head + "\n") else text

    def first_line(text: str, indent: str) -> str:
        return re.sub(r"\A((?:[ \t]*\n)*)[ \t]*", lambda match: match[1] + indent, text)

    visible = _visible(block)
    flush, start = textwrap.dedent(visible), _START.search(visible)
    programs = [whole(block), whole(visible), whole(flush), whole(first_line(visible, ""))]
    flush_left = not block.lstrip("\n")[:1].isspace()
    # A block that defines the function itself must not become a body that nests it.
    if stub and not (flush_left and re.search(rf"^def {stub.name}\b", visible, re.M)):
        bodies = [block, visible, textwrap.indent(flush, indent), first_line(visible, indent)]
        pairs = zip(bodies, programs, strict=True)
        own = start and flush_left
        programs = [text for body, text in pairs for text in ((text, prompt + body) if own else (prompt + body, text))]
    return [*programs, whole(textwrap.dedent(visible[start.start() :]))] if start else programs


def _tree(source: str) -> ast.Module | int:
    """The syntax tree; or the line of the first error, 0 if unknown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
            compile(tree, "answer", "exec", dont_inherit=True)  # "return" outside a function passes ast.parse
        except SyntaxError as error:
            return error.lineno or 0
        except (ValueError, RecursionError, MemoryError):
            return 0
    return tree


def _fault(source: str, name: str | None) -> int | None:
    """None if `source` is good; else the line from which on it is not, or 0 if no prefix can be."""
    tree = _tree(source)
    if isinstance(tree, int):
        return tree
    definition: ast.stmt | None = None
    for node in tree.body:
        if _is_prose(node):
            return node.lineno
        if name in _names(node) or (name is None and isinstance(node, ast.FunctionDef)):
            definition = node
    if definition is None:
        return 0
    return None if _returns(definition) else definition.lineno


def _prefix(source: str, fault: int | None, name: str | None, steps: int) -> str:
    """The longest good prefix of lines, or "" if `steps` find none."""
    lines = source.split("\n")
    for _ in range(steps):
        if not fault:
            break
        # An error at the end of the text is reported at the last line or behind it.
        del lines[min(fault, len(lines)) - 1 :]
        source = "\n".join(lines).rstrip() + "\n"
        fault = _fault(source, name)
        if fault is None:
            return source
    return ""


def _names(node: ast.stmt) -> list[str]:
    """The names that a top-level definition or assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _returns(node: ast.stmt) -> bool:
    """Whether calling the definition can give a value: a function that never returns one is a stub, or no answer."""
    if not isinstance(node, ast.FunctionDef):
        return True
    nodes: list[ast.AST] = list(node.body)
    while nodes:
        child = nodes.pop()
        if isinstance(child, ast.Return | ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            nodes.extend(ast.iter_child_nodes(child))
    return False


def _is_prose(node: ast.stmt) -> bool:
    """Whether a top-level statement is words that happen to be Python ("Done", "Note: trivial"): run, it would fail."""
    if isinstance(node, ast.AnnAssign):
        return node.value is None
    if not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant):
        return False
    return not any(isinstance(child, ast.Call) for child in ast.walk(node))
