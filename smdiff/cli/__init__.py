"""The command line. Nothing heavy is imported before a command's arguments are accepted."""

from __future__ import annotations

import io
import os
import signal
import sys

import typer
from typer.exceptions import TyperException

from smdiff.cli.eval_code import eval_code
from smdiff.cli.eval_text import eval_text
from smdiff.cli.options import from_config
from smdiff.cli.report import report
from smdiff.cli.sample import sample
from smdiff.cli.training import finetune, pretrain
from smdiff.config import EvalCodeConfig, EvalTextConfig, FinetuneConfig, PretrainConfig, SampleConfig
from smdiff.errors import UserError, said
from smdiff.ranks import is_first, rank

app = typer.Typer(
    name="smdiff",
    help="Soft-masked diffusion language models: train, finetune, sample, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("pretrain")(from_config(PretrainConfig)(pretrain))
app.command("finetune")(from_config(FinetuneConfig)(finetune))
app.command("sample")(from_config(SampleConfig)(sample))
app.command("eval-code")(from_config(EvalCodeConfig)(eval_code))
app.command("eval-text")(from_config(EvalTextConfig)(eval_text))
app.command("report")(report)


def _one_line(text: str) -> None:
    """An error as one line on stderr, however long; of a launcher's other processes with their number."""
    who = "smdiff: " if is_first() else f"smdiff, rank {rank()}: "
    print(who + " ".join(text.split()), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show, halves of pairs too
    try:
        return app(args=argv, prog_name="smdiff", standalone_mode=False) or 0
    except UserError as error:
        if is_first() or error.exit_code not in (2, 130):  # what is wrong for one is wrong for all
            _one_line(f"error: {error}" if error.exit_code != 130 else str(error))
        return error.exit_code
    except TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message:
            _one_line(f"error: {message}")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _one_line("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output (head, say) has gone: nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:  # of files that no command looks after: the output's, a library's cache
        if os.environ.get("SMDIFF_DEBUG"):
            raise
        what = f"cannot use {error.filename}" if error.filename else "cannot read or write a file"
        _one_line(f"error: {what}: {said(error)}. Make room or mend it, and run the same command again")
        return 1
    except Exception as error:
        if os.environ.get("SMDIFF_DEBUG"):
            raise
        _one_line(f"failed: {type(error).__name__}: {error}. SMDIFF_DEBUG=1 shows where; please report it")
        return 1


def entry() -> None:
    """The `smdiff` program."""
    sys.exit(main())
