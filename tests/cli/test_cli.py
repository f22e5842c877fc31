import dataclasses
import json
import re
import subprocess
import sys

import pytest

from smdiff.cli import main
from smdiff.config import PretrainConfig

TRAIN = [
    "pretrain", "--tokenizer", "bytes", "--length", "16", "--hidden-size", "16", "--layers", "1", "--heads", "2",
    "--cond-dim", "8", "--batch-size", "8", "--steps", "4", "--eval-sequences", "16", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"def f{i}(x):\n    return x * {i}\n\n" for i in range(200)))
    return str(path)


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """A binary and a soft-masked run, made by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    assert main([*TRAIN, "--data", text, "--out", str(folder / "binary")]) == 0
    arguments = ["--data", text, "--out", str(folder / "soft"), "--init", str(folder / "binary"), "--soft-mask"]
    assert main([*TRAIN, *arguments]) == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs without --out go under the current folder."""
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments: str) -> str:
    """The one line that bad input gets, with exit code 2 and nothing on stdout."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("smdiff: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_sampling_prints_texts_and_json_lines(capsys, runs):
    model = str(runs / "soft")
    code, out, err = run(capsys, "sample", model, "--steps", "4", "--num", "3", "--seed", "7")
    assert code == 0
    assert "soft-masked, ancestral: 3 texts, NFE 4, 48 new tokens" in err
    code, lines, _ = run(capsys, "sample", model, "--steps", "4", "--num", "3", "--seed", "7", "--json", "--quiet")
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [r["index"] for r in rows] == [0, 1, 2]
    assert all(len(r["ids"]) == 16 and r["nfe"] <= 5 and r["soft_mask"] for r in rows)
    assert out == "".join(r["text"] + "\n" for r in rows)
    _, one_by_one, _ = run(
        capsys, "sample", model, "--steps", "4", "--num", "3", "--seed", "7", "--json", "--quiet", "--batch-size", "1"
    )
    assert [json.loads(line)["ids"] for line in one_by_one.splitlines()] == [r["ids"] for r in rows]
    _, binary, _ = run(capsys, "sample", model, "--no-soft-mask", "--steps", "4", "--json", "--length", "9")
    assert len(json.loads(binary)["ids"]) == 9


def test_every_step_goes_to_a_page_and_a_history(capsys, runs, tmp_path):
    page, history = tmp_path / "steps.html", tmp_path / "steps.jsonl"
    arguments = ["sample", str(runs / "soft"), "--prompt", "ab", "--length", "8", "--steps", "4", "--num", "2"]
    arguments += ["--scheduler", "entropy", "--json", "--history", str(history)]
    code, out, err = run(capsys, *arguments, "--show", "html", "--show-to", str(page))
    assert code == 0
    assert str(page) in err
    texts = [json.loads(line) for line in out.splitlines()]
    frames = [json.loads(line) for line in history.read_text().splitlines()]
    assert [(f["text"], f["step"]) for f in frames] == [(t, s) for s in range(4) for t in range(2)]
    assert [f["ids"][2:10] for f in frames[-2:]] == [t["ids"] for t in texts]
    assert frames[0]["given"] == [True, True] + [False] * 8
    assert "<script" in page.read_text()
    code, _, err = run(capsys, *arguments, "--show", "live")  # no terminal here: a plain line a step
    assert code == 0
    assert sum(line.startswith("step ") for line in err.splitlines()) == 4


def test_eval_text_compares_models_on_the_same_masks(capsys, runs, text, tmp_path):
    models = [str(runs / "binary"), str(runs / "soft")]
    out = tmp_path / "scores"
    code, printed, _ = run(capsys, "eval-text", *models, "--data", text, "--draws", "4", "--json", "--out", str(out))
    assert code == 0
    result = json.loads(printed)
    assert result == json.loads((out / "result.json").read_text())
    assert (out / "result.csv").exists()
    assert (out / "result.png").exists()
    assert [(r["model"], r["passes"]) for r in result["results"]] == [(models[0], 1), (models[1], 1), (models[1], 2)]
    assert result["data"][0]["split"] == "held-out"
    assert "difference" not in result["results"][0]
    first, second = result["results"][1], result["results"][2]
    assert first["difference"]["nats"] == pytest.approx(first["nats"] - result["results"][0]["nats"])
    assert second["difference"]["standard_error"] < second["standard_error"]
    code, table, _ = run(capsys, "eval-text", *models, "--data", text, "--draws", "4")
    assert code == 0
    assert "upper bound" in table
    assert f"{second['perplexity']:.3f}" in table


def test_eval_text_scores_all_of_data_that_was_not_trained_on(capsys, runs, tmp_path):
    (tmp_path / "other.txt").write_text("something else entirely, " * 30)
    other = str(tmp_path / "other.txt")
    _, printed, _ = run(capsys, "eval-text", str(runs / "soft"), "--data", other, "--json", "--draws", "2")
    whole = json.loads(printed)["data"][0]
    assert whole["split"] == "all"
    assert whole["sequences"] == (len("something else entirely, " * 30) + 1) // 16
    _, printed, _ = run(
        capsys, "eval-text", str(runs / "soft"), "--data", other, "--json", "--draws", "2", "--split", "held-out"
    )
    assert json.loads(printed)["data"][0]["sequences"] < whole["sequences"]


def test_held_out_means_held_out_by_every_model(capsys, runs, text, tmp_path):
    small = str(tmp_path / "small")
    assert main([*TRAIN, "--data", text, "--valid-fraction", "0.02", "--out", small]) == 0
    capsys.readouterr()
    sizes = []
    for models in ([str(runs / "binary")], [str(runs / "binary"), small]):
        _, printed, _ = run(capsys, "eval-text", *models, "--data", text, "--json", "--draws", "1")
        sizes.append(json.loads(printed)["data"][0]["sequences"])
    assert sizes[1] < sizes[0]
    (tmp_path / "other.txt").write_text("other text " * 50)
    everything = str(tmp_path / "everything")
    assert main([*TRAIN, "--data", text, "--valid-data", str(tmp_path / "other.txt"), "--out", everything]) == 0
    capsys.readouterr()
    assert "trained on all of it" in refused(capsys, "eval-text", everything, "--data", text)


def test_a_finished_run_prints_its_result_again(capsys, text, tmp_path):
    """Also with one held-out sequence, whose standard error does not exist."""
    arguments = [*TRAIN, "--data", text, "--out", str(tmp_path / "x")]
    arguments[arguments.index("--eval-sequences") + 1] = "1"
    first, again = run(capsys, *arguments), run(capsys, *arguments)
    assert first[0] == again[0] == 0
    assert "perplexity" in again[1]


def test_models_of_other_tokenizers_compare_by_bytes_only(capsys, runs, text, tmp_path):
    arguments = ["--data", text, "--out", str(tmp_path / "bpe"), "--tokenizer", "bpe:300"]
    assert main([*TRAIN, *arguments]) == 0
    capsys.readouterr()
    _, printed, _ = run(
        capsys, "eval-text", str(runs / "binary"), str(tmp_path / "bpe"), "--data", text, "--json", "--draws", "2"
    )
    rows = json.loads(printed)["results"]
    _, printed, _ = run(
        capsys, "eval-text", str(runs / "binary"), str(tmp_path / "bpe"), str(runs / "soft"), "--data", text,
        "--json", "--draws", "2",
    )  # fmt: skip
    three = json.loads(printed)["results"]
    assert three[:2] == rows
    assert "difference" in three[3]
    _, printed, _ = run(
        capsys, "eval-text", str(runs / "binary"), str(runs / "soft"), "--data", text, "--json", "--draws", "2"
    )
    assert json.loads(printed)["results"][2] == three[3]
    assert "difference" not in rows[1]
    assert rows[1]["bits_per_byte"] < rows[1]["nats"] / 0.6931 < 10


def test_dry_run_prints_the_plan_and_trains_nothing(capsys, text, tmp_path):
    out = tmp_path / "plan"
    code, printed, _ = run(capsys, *TRAIN, "--data", text, "--out", str(out), "--soft-mask", "--dry-run", "--json")
    assert code == 0
    plan = json.loads(printed)
    assert plan["tokens"] == 4 * 8 * 16
    assert plan["vocabulary"] == 258
    assert not (out / "checkpoints").exists()
    assert not (out / "run.json").exists()


def test_config_file_and_precedence(capsys, text, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(f'data = "{text}"\nsteps = 77\nhidden-size = 16\nlr = 1\n')
    code, printed, _ = run(
        capsys, *[a for a in TRAIN if a not in ("--steps", "4")], "--config", str(file), "--dry-run", "--json",
        "--out", str(tmp_path / "x"),
    )  # fmt: skip
    assert code == 0
    assert json.loads(printed)["steps"] == 77
    code, printed, _ = run(
        capsys, *TRAIN, "--config", str(file), "--dry-run", "--json", "--out", str(tmp_path / "x")
    )  # fmt: skip
    assert json.loads(printed)["steps"] == 4
    for content, says in (
        ("stepz = 3", "'stepz'.*Did you mean 'steps'"),
        ('steps = "many"', "steps is a int"),
        ("steps = 1.5", "steps is a int"),
        ("steps = [", "not valid TOML"),
        ("lr = nan", "more than 0"),
        ("soft_mask = 1", "soft_mask is a bool"),
    ):
        file.write_text(content)
        message = refused(capsys, *TRAIN, "--config", str(file))
        assert re.search(says, message), message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stepz", "3"], "--steps"),
        (["--preset", "tiyn"], "'tiny'"),
        (["--steps", "0"], "at least 1"),
        (["--steps", "three"], "valid integer"),
        (["--lr", "-1"], "more than 0"),
        (["--lr", "inf"], "at most 10"),
        (["--p-sm", "1.5"], "at most 1"),
        (["--t-min", "0.9", "--t-max", "0.1"], "above the largest"),
        (["--heads", "3"], "multiple"),
        (["--hidden-size", "65536", "--layers", "50"], "GB"),
        (["--accumulation", "3"], "micro-batches"),
        (["--budget", "iso-compote"], "'iso-compute'"),
        (["--data", "missing.txt"], "no such file"),
        (["--init", "missing"], "no model at missing"),
        (["--config", "missing.toml"], "cannot read missing.toml"),
        (["--length", "100000"], "shorter than one sequence"),
        (["--tokenizer", "bpe:7"], "bpe:N"),
    ],
)
def test_bad_options_get_one_line(capsys, text, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *TRAIN, "--data", text, "--out", "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_bad_models_and_folders_get_one_line(capsys, runs, text, tmp_path):
    binary = str(runs / "binary")
    assert "no soft-mask scalars" in refused(capsys, "sample", binary, "--soft-mask")
    assert "no model at nowhere" in refused(capsys, "sample", "nowhere")
    assert "Did you mean 'live'?" in refused(capsys, "sample", binary, "--show", "life")
    nowhere = str(tmp_path / "nowhere" / "x")
    assert "there is no folder" in refused(capsys, "sample", binary, "--show", "html", "--show-to", nowhere)
    assert "there is no folder" in refused(capsys, "sample", binary, "--history", nowhere)
    assert "cannot read" in refused(capsys, "sample", binary, "--prompt-file", nowhere)
    assert "--device" in refused(capsys, "sample", binary, "--device", "gpu")
    assert "only 16 tokens" in refused(capsys, "sample", binary, "--steps", "17")
    assert "--soft-mask-scale" in refused(capsys, "sample", binary, "--soft-mask")
    assert "Missing argument" in refused(capsys, "sample")
    assert "no model in" in refused(capsys, "eval-text", str(tmp_path))
    assert "no such choice" in refused(capsys, "sample", binary, "--scheduler", "ancestrall")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(capsys, "eval-text", binary, "--out", str(tmp_path / "file"))
    assert "cannot write" in refused(capsys, *TRAIN, "--data", text, "--out", str(tmp_path / "file" / "run"))
    assert "another configuration: lr" in refused(capsys, *TRAIN, "--data", text, "--out", binary, "--lr", "0.5")
    assert "No such command 'pretrian'" in refused(capsys, "pretrian")


def test_interruption_and_surprises_have_their_exit_codes(capsys, monkeypatch, runs):
    from smdiff.decoding import generate

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    def surprise(*arguments, **options):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(generate, "write", interrupt)
    assert run(capsys, "sample", str(runs / "binary"))[0] == 130
    monkeypatch.setattr(generate, "write", surprise)
    code, _, err = run(capsys, "sample", str(runs / "binary"))
    assert code == 1
    assert "ZeroDivisionError: boom" in err
    assert "Traceback" not in err


def test_nothing_heavy_is_imported_before_arguments_are_accepted():
    for arguments in (["--help"], ["pretrain", "--help"], ["pretrain", "--lr", "-1"], ["sample", "m", "--steps", "0"]):
        code = (
            "import sys; from smdiff.cli import main; main(sys.argv[1:]);"
            "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'} & sys.modules.keys();"
            "assert not heavy, heavy"
        )
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_every_option_has_help_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run(capsys, "pretrain", "--help")
    assert code == 0
    text = " ".join(out.replace("\u2502", " ").split())
    for field in dataclasses.fields(PretrainConfig):
        assert re.search(rf"--{field.name.replace('_', '-')}[ ,]", text)
        assert field.metadata["panel"] in text
    for expected in ("Default: 0.8", "--soft-mask --no-soft-mask", "markov[:SEED]"):
        assert expected in text
