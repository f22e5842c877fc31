import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from smdiff.cli import main
from smdiff.errors import UserError
from smdiff.evaluation.report import COLUMNS, gather, rows_of
from smdiff.evaluation.statistics import paired, wilson
from smdiff.ui.scores import score_plot

TRAIN = [
    "pretrain", "--tokenizer", "bytes", "--length", "16", "--hidden-size", "16", "--layers", "1", "--heads", "2",
    "--cond-dim", "8", "--batch-size", "8", "--steps", "2", "--eval-sequences", "8", "--quiet",
]  # fmt: skip


def code_result(model="runs/soft", sha256="ab" * 32, style="instruct-v1", steps=(192, 384), benchmarks=("humaneval",)):
    """A result of eval-code, from scores of 100 tasks."""
    rows = []
    for benchmark in benchmarks:
        for step in steps:
            binary = [float(i % 5 == 0) for i in range(100)]
            soft = [float(i % 5 == 0 or i < step / 16) for i in range(100)]
            for soft_mask, scores in ((False, binary), (True, soft)):
                mean = sum(scores) / 100
                row = {
                    "benchmark": benchmark, "steps": step, "budget": f"1/{768 // step}", "length": 768,
                    "soft_mask": soft_mask, "seeds": [1, 2], "samples": 1, "tasks": 100, "n": 200, "pass_at_1": mean,
                    "interval": list(wilson(scores)), "pass_at_k": {"1": mean, "2": 1.5 * mean},
                    "per_seed": [mean, mean], "nfe": step - 0.5, "new_tokens": 51234, "tokens_per_second": 812.3,
                    "seconds": 63.1, "compile_failures": 0.03, "timeouts": 0.01, "empty": 0.0, "runner_faults": 0,
                }  # fmt: skip
                difference = {"difference": {"against": "binary", **paired(soft, binary)}} if soft_mask else {}
                rows.append(row | difference)
    return {
        "schema": 1, "command": "eval-code", "config": {}, "model": model,
        "benchmarks": {b: {"name": b, "source": "a package", "sha256": sha256, "tasks": 100} for b in benchmarks},
        "prompt": {"style": style, "user": "...", "assistant": "..."}, "extraction": "v1",
        "runner": {"isolation": "namespaces", "timeout": 3.0, "memory_bytes": 4294967296, "workers": 2},
        "results": rows, "notes": ["code ran in namespaces"], "environment": {},
    }  # fmt: skip


def write(path, result):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return str(path)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with the results of two training runs, and scores.json of eval-text, made by the command line."""
    folder = tmp_path_factory.mktemp("real")
    text = folder / "text.txt"
    text.write_text("".join(f"def f{i}(x):\n    return x * {i}\n\n" for i in range(200)))
    runs = [str(folder / "runs" / name) for name in ("binary", "soft")]
    data = ["--data", str(text)]
    assert main([*TRAIN, *data, "--out", runs[0]]) == 0
    assert main([*TRAIN, *data, "--out", runs[1], "--soft-mask"]) == 0
    scores = ["--draws", "2", "--limit", "8", "--out", str(folder / "scores"), "--quiet"]
    assert main(["eval-text", *runs, *data, *scores]) == 0
    (folder / "scores" / "result.json").rename(folder / "scores.json")
    return folder


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *arguments: object) -> dict:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def refused(capsys, *arguments: object) -> str:
    """The one line that bad input gets, with exit code 2 and nothing on stdout."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    return err


def test_all_kinds_in_one_document_and_one_csv(capsys, real, tmp_path):
    code_file = write(tmp_path / "code.json", code_result(benchmarks=("humaneval", "mbpp")))
    csv_file = tmp_path / "all.csv"
    found = document(capsys, code_file, real / "scores.json", real / "runs", "--csv", csv_file)
    rows = found["results"]
    assert [row["command"] for row in rows] == ["eval-code"] * 8 + ["eval-text"] * 3 + ["pretrain"] * 3
    scored = json.loads((real / "scores.json").read_text())
    trained = json.loads((real / "runs" / "soft" / "result.json").read_text())
    soft = next(row for row in rows if row.get("soft_mask") and row["steps"] == 384)
    assert (soft["data"], soft["nfe"], soft["pass_at_1"], soft["pass_at_2"]) == (
        "humaneval", 383.5, 0.39, pytest.approx(0.585),
    )  # fmt: skip
    assert (soft["low"], soft["high"]) == pytest.approx((0.3002, 0.4880), abs=5e-5)
    assert (soft["difference_to"], soft["difference"], soft["verdict"]) == ("binary", pytest.approx(0.19), "better")
    assert (soft["better"], soft["worse"], soft["equal"], soft["data_sha256"]) == (19, 0, 81, "ab" * 32)
    text = rows[10]
    assert text["perplexity"] == pytest.approx(scored["results"][2]["perplexity"])
    assert text["nats"] == scored["results"][2]["nats"]  # not those of the difference
    assert text["difference"] == scored["results"][2]["difference"]["nats"]
    assert text["difference_to"] == scored["results"][0]["model"]
    assert text["high"] == pytest.approx(math.exp(text["nats"] + 1.96 * text["standard_error"]), rel=1e-4)
    one, two = rows[12:]
    assert (one["passes"], one["nats"], one.get("standard_error")) == (1, trained["valid"]["nll_one_pass"], None)
    assert (two["passes"], two["perplexity"]) == (2, pytest.approx(trained["valid"]["perplexity"]))
    assert two["data_sha256"] == trained["corpus"]["sha256"] == text["data_sha256"]

    with csv_file.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert set(lines[0]) == {*COLUMNS, "pass_at_2"}
    assert [line["source"] for line in lines] == [row["source"] for row in rows]
    assert (lines[0]["seeds"], lines[0]["perplexity"], lines[0]["soft_mask"]) == ("1 2", "", "False")
    assert float(lines[10]["high"]) == text["high"]
    assert lines[12]["high"] == ""


def test_one_table_a_kind(capsys, real, tmp_path):
    code, out, _ = run(capsys, write(tmp_path / "code.json", code_result("hub/[b]model")), real, real / "scores.json")
    assert code == 0
    assert [line.strip() for line in out.splitlines() if line.strip() in ("eval-code", "eval-text", "training")] == [
        "eval-code", "eval-text", "training",
    ]  # fmt: skip
    assert "39.0 [30.0, 48.8]" in out
    assert "hub/[b]model" in out
    low, high = (100 * end for end in code_result()["results"][3]["difference"]["interval"])
    assert f"+19.0 [{low:+.1f}, {high:+.1f}] better" in out
    assert "100 x 2" in out
    assert "note: " + str(tmp_path / "code.json") + ": code ran in namespaces" in out
    assert "not comparable" not in out
    code, out, _ = run(capsys, real)
    assert "eval-code" not in out
    assert "eval-text" not in out


def test_samples_of_others_are_of_no_kind(capsys, tmp_path):
    result = code_result(steps=(192,))
    given = {"steps": None, "budget": None, "soft_mask": None, "nfe": None, "seeds": [], "samples": 1}
    result["results"] = [result["results"][0] | given]
    code, out, _ = run(capsys, write(tmp_path / "result.json", result))
    assert code == 0
    (cells,) = ([cell.strip() for cell in line.split("│")] for line in out.splitlines() if "│ humaneval" in line)
    assert (cells[3], cells[4], cells[-2]) == ("-", "-", "100 x 1")


def test_what_keeps_rows_from_being_compared_is_said(capsys, real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = write(Path("a.json"), code_result())
    other = write(Path("b.json"), code_result(sha256="cd" * 32, style="plain-v1"))
    notes = document(capsys, first, other)["notes"]
    assert (
        f"humaneval (eval-code): 2 versions of the data, not comparable: abababab ({first}), cdcdcdcd ({other})"
        in notes
    )
    assert any("2 prompt styles, not comparable: instruct-v1" in line for line in notes)
    assert f"{first}; {other}: code ran in namespaces" in notes
    _, out, _ = run(capsys, first, other)
    assert "b.json" in out.split("note:")[0]  # a column says which row is whose
    scores = json.loads((real / "scores.json").read_text())
    scores["data"][0] |= {"split": "all", "sha256": None}
    notes = document(capsys, real / "scores.json", write(tmp_path / "c.json", scores))["notes"]
    assert any("2 parts of the data" in line for line in notes)
    assert any("versions of the data" in line and "unknown" in line for line in notes)
    del scores["results"][1]["difference"]
    notes = document(capsys, write(tmp_path / "c.json", scores))["notes"]
    assert any("different tokenizers" in line for line in notes)
    assert not any("not comparable" in line for line in notes)


def test_files_count_once_and_folders_stand_for_their_results(capsys, real, tmp_path, monkeypatch):
    run_folder = real / "runs" / "soft"
    (run_folder / "below").mkdir(exist_ok=True)
    write(run_folder / "below" / "result.json", code_result())
    own = document(capsys, run_folder)["files"]
    assert own == [str(run_folder / "result.json")]
    (run_folder / "below" / "result.json").unlink()
    monkeypatch.chdir(real)
    files = document(capsys, "runs/soft/result.json", real / "runs", run_folder, "runs/../runs/soft/result.json")[
        "files"
    ]
    assert files == ["runs/soft/result.json", str(real / "runs" / "binary" / "result.json")]
    link = tmp_path / "link.json"
    link.symlink_to(run_folder / "result.json")
    assert len(document(capsys, link, run_folder)["results"]) == 2


def test_a_loss_over_some_masked_shares_is_no_perplexity(capsys, real, tmp_path):
    result = json.loads((real / "runs" / "binary" / "result.json").read_text())
    result |= {"command": "finetune", "config": {"max_length": 128, "seed": 3}}
    result["valid"]["times"] = [0.2, 0.8]
    file, picture = write(tmp_path / "run" / "result.json", result), tmp_path / "none.png"
    (row,) = document(capsys, file)["results"]
    assert (row["command"], row["perplexity"], row["low"]) == ("finetune", None, None)
    assert (row["nats"], row["length"], row["seeds"]) == (result["valid"]["nll"], 128, [3])
    code, _, err = run(capsys, tmp_path / "run", "--plot", picture)
    assert (code, err) == (0, f"no {picture}: there is nothing to draw\n")
    assert not picture.exists()
    empty = write(tmp_path / "empty.json", code_result(benchmarks=()))
    assert f"{empty}: no measurements" in document(capsys, empty)["notes"]


class Drawn:
    """The figure that score_plot saves."""

    def __init__(self, monkeypatch):
        import matplotlib.figure

        save = matplotlib.figure.Figure.savefig
        monkeypatch.setattr(
            matplotlib.figure.Figure, "savefig",
            lambda figure, *a, **k: (setattr(self, "figure", figure), save(figure, *a, **k)),
        )  # fmt: skip

    @property
    def legend(self):
        return [text.get_text() for legend in self.figure.legends for text in legend.get_texts()]


def test_a_panel_a_benchmark_and_a_line_a_model(capsys, real, tmp_path, monkeypatch):
    drawn, picture = Drawn(monkeypatch), tmp_path / "all.png"
    files = [
        write(tmp_path / "a.json", code_result(steps=(192,), benchmarks=("humaneval", "mbpp"))),
        write(tmp_path / "b.json", code_result(steps=(384,))),
    ]
    code, _, _ = run(capsys, *files, real / "scores.json", real / "runs", "--plot", picture)
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    axes = drawn.figure.axes
    titles = ["humaneval (100 tasks)", "mbpp (100 tasks)", "text.txt (eval-text)", "text.txt (pretrain)"]
    assert [axis.get_title() for axis in axes] == titles
    assert (axes[0].get_xscale(), axes[2].get_xscale()) == ("log", "linear")
    assert drawn.legend == ["runs/soft, binary", "runs/soft, soft-masked"]
    assert [len(bars[0].get_xdata()) for bars in axes[0].containers] == [2, 2]  # one line over both files
    scores = [bars[0].get_ydata().tolist() for bars in axes[0].containers]
    assert scores == [pytest.approx([20, 20]), pytest.approx([29, 39])]
    low, high = (end[1] for end in axes[0].containers[1][2][0].get_segments()[1])
    assert (low, high) == pytest.approx((30.02, 48.80), abs=5e-2)
    ticks = [tick.get_text().replace("\n", " ") for tick in axes[2].get_yticklabels()]
    assert [tick.split("/")[-1] for tick in ticks] == ["binary, one pass", "soft, one pass", "soft, two passes"]

    again = write(tmp_path / "c.json", code_result(steps=(384,), sha256="cd" * 32))
    assert run(capsys, *files, again, "--plot", picture)[0] == 0
    assert len(drawn.legend) == 6
    assert all(f"({name})" in " ".join(drawn.legend) for name in ("a.json", "b.json", "c.json"))


def test_one_point_without_an_interval_is_drawn(tmp_path, monkeypatch):
    drawn = Drawn(monkeypatch)
    row = {"command": "eval-code", "model": "m", "data": "d", "source": "s", "soft_mask": False, "steps": 8, "nfe": 8}
    assert score_plot([row | {"pass_at_1": 0.5, "low": None, "high": None}], tmp_path / "x.png", "one")
    assert drawn.legend == ["m, binary"]
    assert not score_plot([row | {"pass_at_1": None}], tmp_path / "y.png", "none")
    assert not (tmp_path / "y.png").exists()


def test_long_names_stay_inside_the_picture(tmp_path, monkeypatch):
    drawn = Drawn(monkeypatch)
    results = (code_result(f"a/{'long-name-' * 5}{i}", benchmarks=("humaneval", "mbpp")) for i in range(6))
    rows = [row for i, result in enumerate(results) for row in rows_of(result, str(i))]
    assert score_plot(rows, tmp_path / "x.png", "title")
    frame = drawn.figure.bbox
    (legend,) = drawn.figure.legends
    assert legend.get_window_extent().x0 >= frame.x0
    assert legend.get_window_extent().x1 <= frame.x1
    assert min(axis.get_window_extent().height for axis in drawn.figure.axes) > 200


def test_bad_input_gets_one_line(capsys, real, tmp_path):
    good = write(tmp_path / "good.json", code_result())
    assert "no such file: nowhere.json" in refused(capsys, "nowhere.json")
    (tmp_path / "text.json").write_text("loss: 3")
    assert "text.json" in refused(capsys, good, tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[1]")
    assert "list.json is not a JSON object" in refused(capsys, tmp_path / "list.json")
    (tmp_path / "empty").mkdir()
    assert "no result.json in" in refused(capsys, tmp_path / "empty")
    foreign = write(tmp_path / "foreign.json", {"name": "package"})
    assert "foreign.json is no result that smdiff can report" in refused(capsys, good, foreign)
    assert "'report'" in refused(capsys, write(tmp_path / "r.json", {"schema": 1, "command": "report"}))
    assert "has schema 2" in refused(capsys, write(tmp_path / "new.json", code_result() | {"schema": 2}))
    assert "there is no 'benchmarks'" in refused(
        capsys, write(tmp_path / "cut.json", {k: v for k, v in code_result().items() if k != "benchmarks"})
    )
    for key, value in (("pass_at_1", "high"), ("steps", [1]), ("interval", None), ("benchmark", 7), ("seeds", 1)):
        broken = code_result()
        broken["results"][0][key] = value
        assert "is not a whole result of eval-code" in refused(capsys, write(tmp_path / "broken.json", broken))
    for key in ("steps", "soft_mask", "nfe", "interval", "pass_at_k"):
        broken = code_result()
        del broken["results"][0][key]
        assert f"there is no '{key}'" in refused(capsys, write(tmp_path / "broken.json", broken))
    assert "can report" in refused(capsys, write(tmp_path / "odd.json", {"schema": 1, "command": ["eval-code"]}))
    assert ".png" in refused(capsys, good, "--plot", tmp_path / "x.pdf")
    assert "--plot" in refused(capsys, good, "--plot", tmp_path / "no" / "x.png")
    assert "--csv" in refused(capsys, good, "--csv", tmp_path / "no" / "x.csv")
    assert "--csv" in refused(capsys, good, "--csv", tmp_path)
    before = Path(good).read_text()
    assert "one of the results" in refused(capsys, good, "--csv", tmp_path / "empty" / ".." / "good.json")
    assert Path(good).read_text() == before
    assert "Missing argument" in refused(capsys)


def test_a_file_that_cannot_be_written_is_told_after_the_result(capsys, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smdiff.evaluation.report.write_whole", full)
    code, out, err = run(capsys, write(tmp_path / "a.json", code_result()), "--csv", tmp_path / "a.csv")
    assert code == 1
    assert "humaneval" in out
    assert err.count("\n") == 1
    assert "No space left" in err


def test_rows_are_for_other_commands_too(tmp_path):
    rows = rows_of(code_result(), "here")
    file = write(tmp_path / "a.json", code_result())
    assert [row | {"source": file} for row in rows] == gather([Path(file)])["results"]
    assert score_plot(rows, tmp_path / "x.png", "title")
    with pytest.raises(UserError, match="here"):
        rows_of({}, "here")


def test_nothing_heavy_is_imported_to_print_a_table(tmp_path):
    code = (
        "import sys; from smdiff.cli import main; assert main(sys.argv[1:]) == 0;"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    file = write(tmp_path / "a.json", code_result())
    subprocess.run([sys.executable, "-c", code, "report", file], check=True, capture_output=True)
