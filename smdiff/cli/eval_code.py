"""`smdiff eval-code`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from smdiff.cli.options import Json, Quiet
from smdiff.config import EvalCodeConfig, resolve
from smdiff.errors import UserError
from smdiff.ranks import is_first

_STAGES = "Stages"


def eval_code(
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Run folder, adapter, denoiser folder, MDLM weights, or a hub name.", show_default=False),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Folder of answers, verdicts and result; goes on with what it holds. By default "
                     "under runs/.", rich_help_panel="Output"),
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option("--allow-code-execution", help="Yes, run the programs that the model writes.",
                     rich_help_panel="Runner"),
    ] = False,
    samples_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Grade these samples instead: JSON lines with task_id and completion or solution.",
                     rich_help_panel=_STAGES),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="--samples-file may lack tasks; the others are scored.",
                           rich_help_panel=_STAGES)
    ] = False,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Run every program again.", rich_help_panel=_STAGES)
    ] = False,
    re_extract: Annotated[
        bool, typer.Option("--re-extract", help="Take the programs from the answers again, and run them.",
                           rich_help_panel=_STAGES)
    ] = False,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Grade the benchmarks' own solutions: all must pass, spoilt ones not.",
                           rich_help_panel=_STAGES)
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:  # fmt: skip
    """Pass rates on HumanEval, HumanEval+, MBPP and MBPP+, over step budgets, with soft-masking and without.

    Programs run behind walls (--isolation). Stopped evaluations go on where they were; nothing is done twice.
    """
    config = resolve(EvalCodeConfig, flags).config
    for name in config.benchmarks:
        for setting in config.settings(False):
            config.sample_config(setting, config.new_tokens(name))
    if (model is None) == (samples_file is None and not self_test):
        given = "a model" if model is None else "either a model, or --samples-file, or --self-test"
        raise UserError(f"eval-code needs {given}", fix="smdiff eval-code MODEL --allow-code-execution")
    if model is None and config.revision is not None:
        raise UserError(f"--revision {config.revision} has no effect", "there is no model", "Leave it out.")
    if not (allow_code_execution or self_test):
        command = shlex.join(["smdiff", *sys.argv[1:], "--allow-code-execution"])
        raise UserError("eval-code runs programs that a model wrote", "it needs your word", f"Say so: {command}")

    from smdiff.cli.render import code_scores, self_tests, setup

    setup(quiet)
    from smdiff.evaluation.code import evaluate as stages

    if model is None and not is_first():  # nothing is generated: there is no work for the others
        return None
    if self_test:
        return self_tests(stages.self_test(config), json)
    if samples_file is not None:
        return code_scores(stages.grade_file(samples_file, config, out, partial=partial), json)
    assert model is not None
    if found := stages.evaluate(model, config, out, regrade=regrade, re_extract=re_extract):
        code_scores(found, json)
