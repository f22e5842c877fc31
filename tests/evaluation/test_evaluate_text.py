"""`smdiff eval-text` with texts that models write, by the command line."""

import io
import json
import math
from pathlib import Path

import datasets
import pytest
import torch
from rich.console import Console

from smdiff.cli import main
from smdiff.cli.render import _generated
from smdiff.config import EvalTextConfig
from smdiff.config.evaluation import TEXT_SET_NAMES
from smdiff.data.corpora import load_corpus
from smdiff.data.text_sets import TEXT_SETS, detokenizer
from smdiff.evaluation import evaluate_text
from smdiff.evaluation.judge import Judge
from smdiff.evaluation.measures import unigram_entropy
from smdiff.evaluation.store import Lines

TRAIN = [
    "pretrain", "--tokenizer", "bytes", "--length", "16", "--hidden-size", "16", "--layers", "1", "--heads", "2",
    "--cond-dim", "8", "--batch-size", "8", "--steps", "4", "--eval-sequences", "16", "--quiet",
]  # fmt: skip
FEW = ["--limit", "8", "--draws", "2", "--generate", "6", "--batch-size", "4", "--mauve-seeds", "2", "--quiet"]
SWEEP = [*FEW, "--steps", "1/4,1/1", "--soft-mask", "both", "--scheduler", "ancestral,entropy"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, and runs: binary, soft and ar."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "text.txt").write_text("".join(f"def f{i}(x):\n    return x * {i}\n\n" for i in range(200)))
    (folder / "other.txt").write_text("Something else, said at some length. " * 40)
    train = [*TRAIN, "--data", str(folder / "text.txt")]
    assert main([*train, "--out", str(folder / "binary")]) == 0
    assert main([*train, "--out", str(folder / "soft"), "--soft-mask", "--w-s", "0.5"]) == 0
    assert main([*train, "--out", str(folder / "ar"), "--objective", "ar"]) == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs without --out go under the current folder, features into a cache of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def command(world, *more, models=("binary", "soft", "ar"), data="text.txt"):
    sources = ",".join(str(world / part) for part in data.split(","))
    judge = ["--judge", str(world / "ar")] if "--generate" in more else []
    return ["eval-text", *(str(world / name) for name in models), "--data", sources, *judge, *more]


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "eval"
    assert main(command(world, *SWEEP, "--out", str(out), data="text.txt,other.txt")) == 0
    return out


def samples(out):
    found = {path.parent: Lines(path, ("index",)).records.values() for path in Path(out).rglob("samples.jsonl")}
    return {str(at.relative_to(out)): sorted((r["index"], tuple(r["ids"])) for r in x) for at, x in found.items()}


def refused(capsys, arguments):
    code = main(arguments)
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("smdiff: ")]
    assert (code, out, len(said)) == (2, "", 1), err
    return said[0]


def test_one_table_of_likelihoods_and_texts(world, done, capsys):
    result = json.loads((done / "result.json").read_text())
    assert [(d["name"], d["split"]) for d in result["data"]] == [
        (str(world / "text.txt"), "held-out"), (str(world / "other.txt"), "all"),
    ]  # fmt: skip
    rows = [(Path(r["model"]).name, r["passes"], r["exact"]) for r in result["results"]]
    assert rows == [("binary", 1, False), ("soft", 1, False), ("soft", 2, False), ("ar", 1, True)] * 2
    ways = [(Path(r["model"]).name, r["scheduler"], r["steps"], r["soft_mask"]) for r in result["generated"]]
    sweep = [(scheduler, steps) for scheduler in ("ancestral", "entropy") for steps in (4, 16)]
    assert ways == [
        ("real text", None, None, None), *(("binary", *s, False) for s in sweep),
        *(("soft", *s, soft) for s in sweep for soft in (False, True)), ("ar", "ar", 16, None),
    ]  # fmt: skip
    assert [n for n in result["notes"] if "by itself" in n] == [
        f"{world / 'ar'} is judged by itself: its generative perplexity does not compare"
    ]
    assert main(["report", str(done), "--csv", "all.csv", "--plot", "all.png"]) == 0
    table = capsys.readouterr().out
    assert "generated texts" in table
    assert "not comparable" not in table
    assert (done / "result.png").stat().st_size > 10_000


def test_every_figure_is_that_of_the_texts_that_are_kept(world, done):
    result, judge = json.loads((done / "result.json").read_text()), Judge(str(world / "ar"))
    row = next(r for r in result["generated"] if r["soft_mask"] and r["steps"] == 4 and r["scheduler"] == "entropy")
    (folder,) = done.glob("soft-*/entropy-soft-masked-4-seed0")
    texts = list(Lines(folder / "samples.jsonl", ("index",)).records.values())
    assert len(texts) == row["n"] == 6
    assert row["nfe"] == 4
    total, count = judge.nll([t["text"] for t in texts])
    assert row["generative_perplexity"] == pytest.approx(math.exp(float(total.sum() / count.sum())), rel=1e-6)
    assert row["judged_tokens"] == int(count.sum())
    low, high = row["interval"]
    assert low < row["generative_perplexity"] < high
    assert row["entropy"] == pytest.approx(sum(unigram_entropy(t["ids"]) for t in texts) / 6)
    base = next(r for r in result["generated"] if r["soft_mask"] is False and r["steps"] == 4
                and r["scheduler"] == "entropy" and r["model"] == row["model"])  # fmt: skip
    ratio = row["generative_perplexity"] / base["generative_perplexity"]
    assert row["difference"]["perplexity_ratio"] == pytest.approx(ratio)
    assert 0 <= row["mauve"] <= 1
    ar = result["generated"][-1]
    assert (ar["nfe"], ar["n"]) == (16, 6)


@pytest.mark.parametrize("width", [120, 160])
def test_the_table_keeps_its_figures_whole_where_it_wraps(done, width):
    result = json.loads((done / "result.json").read_text())
    worst = next(row for row in result["generated"] if row["soft_mask"])
    worst |= {"generative_perplexity": 8924638692.42, "interval": [2832335976.45, 28121372765.27]}
    with Console(width=width, file=io.StringIO()) as console, console.capture() as capture:
        console.print(_generated(result))
    words = capture.get().split()
    for word in ("binary", "soft-masked", "ancestral", "8.92e+09", "[2.83e+09,", "2.81e+10]", "distinct-2", "(1/4)"):
        assert word in words, word


def test_of_different_tokenizers_only_bits_per_byte_compare(world, capsys, tmp_path):
    bpe = [*TRAIN, "--data", str(world / "text.txt"), "--out", str(tmp_path / "bpe")]
    bpe[bpe.index("bytes")] = "bpe:280"
    assert main(bpe) == 0
    capsys.readouterr()
    arguments = command(world, *FEW, "--steps", "1/4", "--json", models=("binary", "soft"))
    assert main([arguments[0], str(tmp_path / "bpe"), *arguments[1:]]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {Path(row["model"]).name: row for row in result["results"]}
    assert [("difference" in rows[name], rows[name]["bits_per_byte"] > 0) for name in ("bpe", "binary")] == [
        (False, True), (False, True),
    ]  # fmt: skip
    assert any("only bits/byte compares" in note for note in result["notes"])
    assert [r["model"] for r in result["generated"][:2]] == ["real text for bpe", "real text for binary"]


def test_what_is_done_is_not_done_again_and_more_is_added(world, done, monkeypatch, capsys):
    before = samples(done)
    monkeypatch.setattr(evaluate_text, "load", None)  # would fail if a model were asked for
    arguments = command(world, *SWEEP, "--out", str(done), "--json", data="text.txt,other.txt")
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    monkeypatch.undo()
    arguments[arguments.index("--generate") + 1] = "8"
    arguments[arguments.index("--steps") + 1] = "1/4"
    assert main(arguments) == 0
    more = json.loads(capsys.readouterr().out)
    assert again["generated"][1]["n"] == 6
    assert {r["n"] for r in more["generated"]} == {8}
    after = samples(done)
    for name, rows in before.items():
        assert after[name][: len(rows)] == rows
    assert "made with another" not in refused(capsys, [*command(world, *SWEEP, "--out", str(done)), "--top-p", "0.5"])


def test_a_stopped_evaluation_goes_on_to_the_same_texts(world, done, monkeypatch, capsys, tmp_path):
    whole, out = samples(done), tmp_path / "eval"
    arguments = command(world, *SWEEP, "--out", str(out), data="text.txt,other.txt")
    add, calls = Lines.add, []

    def stopping(self, records):
        add(self, records)
        calls.append(self.path)
        if len(calls) in (3, 9, 15, 22, 30):
            raise KeyboardInterrupt

    monkeypatch.setattr(Lines, "add", stopping)
    codes = []
    while not codes or codes[-1] == 130:
        codes.append(main(arguments))
    assert codes == [130] * 5 + [0]
    assert "Run the same command to go on" in capsys.readouterr().err
    found = samples(out)
    assert {k: v[:6] for k, v in whole.items() if not k.startswith("real")} == {
        k: v for k, v in found.items() if not k.startswith("real")
    }
    for path in out.rglob("*.jsonl"):  # nothing was written twice
        lines = path.read_text().splitlines()
        assert len(lines) == len(set(lines)), path


def test_texts_do_not_depend_on_the_batch(world, done, tmp_path):
    out = tmp_path / "eval"
    arguments = command(world, *SWEEP, "--out", str(out), data="text.txt,other.txt")
    arguments[arguments.index("--batch-size") + 1] = "3"
    assert main(arguments) == 0
    ours, theirs = samples(out), samples(done)
    assert all(theirs[name][:6] == rows for name, rows in ours.items() if not name.startswith("real"))


def test_bad_input(world, capsys, tmp_path):
    binary = {"models": ("binary",)}
    assert "no texts are written" in refused(capsys, command(world, "--steps", "4", **binary))
    assert "no texts are written" in refused(capsys, command(world, "--judge", "x", **binary))
    assert "no such choice" in refused(capsys, command(world, *FEW, "--scheduler", "ancestrel", **binary))
    assert "sets of texts" in refused(capsys, command(world, "--generate", "1", **binary))
    assert "no whole number" in refused(capsys, command(world, *FEW, "--length", "9", "--steps", "1/2", **binary))
    assert "no whole number" in refused(capsys, command(world, *FEW, "--steps", "1/3", **binary))
    assert "no soft-mask scalars" in refused(capsys, command(world, *FEW, "--soft-mask", "on", **binary))
    assert "Fill a folder nowhere" in refused(capsys, [*command(world, *FEW, **binary), "--judge", "nowhere"])
    own = str(world / "text.txt")
    assert "Give a causal model: a folder" in refused(capsys, [*command(world, *FEW, **binary), "--judge", own])
    masked = command(world, *FEW, **binary)
    masked[masked.index("--judge") + 1] = str(world / "binary")
    assert "it fills masks" in refused(capsys, masked)
    (tmp_path / "empty.txt").write_text("")
    empty = ["eval-text", str(world / "binary"), "--data", str(tmp_path / "empty.txt")]
    assert "no text" in refused(capsys, empty)
    (tmp_path / "short.txt").write_text("hi")
    assert "shorter than one sequence" in refused(capsys, [*empty[:3], str(tmp_path / "short.txt")])
    assert "Did you mean 'lambada'?" in refused(capsys, [*empty[:3], "lambda=x.txt"])
    assert "no such file" in refused(capsys, [*empty[:3], "lambada=x.txt"])
    assert "--data is empty" in refused(capsys, [*empty[:3], ","])
    assert not list(tmp_path.rglob("samples.jsonl"))


def test_an_autoregressive_model_is_there_to_compare_with(world, capsys, tmp_path):
    ar, out = str(world / "ar"), str(tmp_path / "x")
    assert "autoregressive" in refused(capsys, ["sample", ar])
    train = [*TRAIN, "--data", str(world / "text.txt"), "--out", out]
    assert "no masks" in refused(capsys, [*train, "--objective", "ar", "--soft-mask"])
    assert "is an autoregressive model" in refused(capsys, [*train, "--init", ar])
    assert "takes a run of the same" in refused(capsys, [*train, "--init", str(world / "soft"), "--objective", "ar"])
    finetune = ["finetune", "--model", ar, "--data", str(world / "text.txt"), "--format", "text", "--out", out]
    assert "autoregressive" in refused(capsys, finetune)
    assert main([*train, "--init", ar, "--objective", "ar"]) == 0
    capsys.readouterr()
    assert main([*train, "--init", ar, "--objective", "ar"]) == 0
    assert "= " in capsys.readouterr().out


def test_fewer_texts_than_clusters_adapts_and_says_so(world, capsys):
    arguments = command(world, *FEW, "--mauve-clusters", "50", "--steps", "1/4", "--json", models=("binary",))
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["generated"][1]["mauve_clusters"] == 2
    assert any("50 are more than the 6 texts" in note for note in result["notes"])


def test_without_mauve_text_it_says_what_to_install(world, capsys, monkeypatch):
    monkeypatch.setattr("smdiff.evaluation.measures.find_spec", lambda name: None)
    assert "pip install 'smdiff[mauve]'" in refused(capsys, command(world, *FEW, models=("binary",)))
    without = command(world, *FEW, "--steps", "1/4", "--json", models=("binary",))
    without[without.index("--mauve-seeds") + 1] = "0"
    assert main(without) == 0
    assert "mauve" not in json.loads(capsys.readouterr().out)["generated"][1]


DETOKENIZED = {
    "wikitext-2": (" = Robert Boulter = \n He had a 1 @,@ 000 @-@ mile \" guest \" role , ( twice ) ; John 's . \n",
                   " = Robert Boulter =\nHe had a 1,000-mile \"guest\" role, (twice); John's.\n"),
    "ptb": ("no it was n't N N of $ N <unk> 's", "no it wasn't 1 1 of $1 ?'s"),
    "lm1b": ("He said : \" it ' s $ 5 , ( really ) \" ?", "He said: \"it ' s $5, (really)\"?"),
    "lambada": ("  “ yes , ” he said ", "\n\" yes , \" he said"),
    "ag_news": (" as it , is ", " as it , is "),
}  # fmt: skip


@pytest.mark.parametrize("name", DETOKENIZED)
def test_detokenizers_give_what_mdlms_give(name):
    before, after = DETOKENIZED[name]
    assert detokenizer(TEXT_SETS[name].rules)(before) == after


def on_the_hub(name, configuration, **splits):
    """A folder that `datasets` reads under its relative name in the way in which it reads the hub's conversions."""
    for split, rows in splits.items():
        at = Path(name, configuration, split)
        at.mkdir(parents=True)
        if rows is None:
            (at / "0000.parquet").write_bytes(b"not to be read")
        else:
            column = "sentence" if "ptb" in name else "article"
            datasets.Dataset.from_dict({column: rows}).to_parquet(at / "0000.parquet")


def test_of_text_sets_on_the_hub_the_reported_split_of_the_configuration_is_scored(tmp_path):
    assert tuple(TEXT_SETS) == TEXT_SET_NAMES
    on_the_hub(
        "ptb-text-only/ptb_text_only", "penn_treebank", train=["a"] * 3, validation=["he is n't", " "], test=["x"]
    )
    corpus = load_corpus("ptb")
    assert (corpus.own_split, list(corpus.valid["text"]), len(corpus.train)) == (True, ["he isn't"], 3)
    papers = "armanc/scientific_papers"
    on_the_hub(papers, "arxiv", **{"partial-train": None, "partial-validation": ["of arxiv , too"]})
    on_the_hub(papers, "pubmed", train=None, validation=["of pubmed ( really )"], test=None)
    for name, text in (("arxiv", "of arxiv, too"), ("pubmed", "of pubmed (really)")):
        corpus = load_corpus(name, scored=True)
        assert list(corpus.valid["text"]) == list(corpus.documents["text"]) == [text]
        assert corpus.own_split


def test_text_sets_come_from_a_file(tmp_path):
    (tmp_path / "x.txt").write_text("he is n't\n\nhere")
    local = load_corpus(f"ptb={tmp_path / 'x.txt'}")
    assert (local.name, list(local.documents["text"])) == ("ptb", ["he isn't", "here"])
    (tmp_path / "x.jsonl").write_text('{"sentence": "it is n\'t"}\n{"sentence": "so"}\n')
    assert list(load_corpus(f"ptb={tmp_path / 'x.jsonl'}").documents["text"]) == ["it isn't", "so"]
    (tmp_path / "wiki.txt").write_text(' \n = A title = \n \n It was , " so " . \n')
    rows = list(load_corpus(f"wikitext-2={tmp_path / 'wiki.txt'}").documents["text"])
    assert rows == [" = A title =\n", ' It was, "so".\n']  # as on the hub, where a row has its line feed


def test_a_judge_is_not_needed_for_entropies(world, capsys):
    arguments = command(world, *FEW, "--steps", "1/4", "--json", models=("soft",))
    arguments[arguments.index("--judge") + 1] = "none"
    arguments[arguments.index("--mauve-seeds") + 1] = "0"
    assert main(arguments) == 0
    row = json.loads(capsys.readouterr().out)["generated"][1]
    assert "generative_perplexity" not in row
    assert row["entropy"] > 0
    assert EvalTextConfig().judge == "gpt2-large"
    assert torch.isfinite(torch.tensor(row["distinct_2"]))
