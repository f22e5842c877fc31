"""Whatever is refused says what, why and how to go on."""

import ast
from pathlib import Path

import smdiff


def refusals(path):
    """The calls that make an error for a user, but those that pass on another one's words."""
    for node in ast.walk(ast.parse(path.read_text())):
        refusal = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "RunFailed")
        if refusal and "str(error)" not in map(ast.unparse, node.args[1:2]):
            yield node


def test_every_refusal_has_a_fix():
    folder = Path(smdiff.__file__).parent
    bare = [
        f"{path.relative_to(folder)}:{node.lineno}"
        for path in folder.rglob("*.py")
        for node in refusals(path)
        if len(node.args) < 3 and "fix" not in {k.arg for k in node.keywords}
    ]
    others = ("training/", "evaluation/code/")
    assert [place for place in bare if not place.startswith(others)] == []
