"""Showing how texts are denoised, with frames from the real loop."""

import dataclasses
import io
import json
import re

import pytest
import torch
from rich.console import Console

from smdiff.data.tokenizers import symbols_tokenizer
from smdiff.decoding.denoise import Options, denoise
from smdiff.decoding.sampling import Noise
from smdiff.decoding.schedulers import SCHEDULERS
from smdiff.decoding.trajectory import Recorder
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models.denoiser import Denoiser
from smdiff.ui import trajectory
from smdiff.ui.trajectory import LiveView, history_line, write_html
from tests.conftest import small_dit

STEPS, PROMPT, NEW = 5, 3, 20


@pytest.fixture(scope="module")
def steps():
    """The frames of two texts, a list for each step."""
    tokenizer = symbols_tokenizer()
    mask_id = tokenizer.mask_token_id
    denoiser = Denoiser(small_dit(vocab_size=len(tokenizer)), mask_id, SoftMask(k=3, w_s=0.7, w_a=1.0, w_b=-2.0))
    ids = torch.nn.functional.pad(torch.tensor([[1, 2, 3], [4, 5, 6]]), (0, NEW), value=mask_id)
    recorder = Recorder(tokenizer, ids, mask_id, texts=[0, 1], padding=[0, 1], soft=True)
    scheduler = SCHEDULERS["maskgit_plus"](temperature=0.0, top_p=1.0)
    run = denoise(denoiser, ids, scheduler, STEPS, Noise(0, range(2)), Options(soft_mask=True))
    return [list(recorder.frames(step)) for step in run]


def console_in(monkeypatch, **options):
    """Let the view write into a buffer."""
    buffer = io.StringIO()
    monkeypatch.setattr("smdiff.ui.console._quiet", False)
    monkeypatch.setattr(trajectory, "err", Console(file=buffer, width=80, height=24, highlight=False, **options))
    return buffer


def screen(written, height=24):
    """The lines that a terminal shows once `written` has come."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
            assert row >= max(0, len(lines) - height), "redraws what has left the screen"
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return lines


def html_data(path):
    page = path.read_text(encoding="utf-8")
    return page, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def replayed(data, text):
    """Per step, the cells of a text as the page rebuilds them: (kind, pieces with permilles)."""
    cells, states = {}, []
    for _, _, changed in text["steps"]:
        cells |= {int(i): cell for i, cell in changed.items()}
        states.append([cells[i] for i in range(len(cells))])
    return [
        [(kind, [(data["pieces"][n], p) for n, p in zip(flat[::2], flat[1::2], strict=True)]) for kind, *flat in state]
        for state in states
    ]


def test_page_holds_every_step_and_nothing_from_elsewhere(steps, tmp_path):
    write_html(tmp_path / "a.html", [f for frames in steps for f in frames], "a <b> & @data@")
    page, data = html_data(tmp_path / "a.html")
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(|<link|innerHTML", page)
    assert "<title>a &lt;b&gt; &amp; @data@</title>" in page
    assert [t["name"] for t in data["texts"]] == [0, 1]
    for n, text in enumerate(data["texts"]):
        frames = [s[n] for s in steps]
        assert [s[:2] for s in text["steps"]] == [[0, 0], *([f.step + 1, f.nfe] for f in frames)]
        start, *states = replayed(data, text)
        assert [kind for kind, _ in start] == [2 if given else 0 for given in frames[0].given]
        for frame, state in zip(frames, states, strict=True):
            for i, (kind, pairs) in enumerate(state):
                assert kind == (0 if frame.masked[i] else 2 if frame.given[i] else 1)
                expected = [(frame.pieces[i], frame.confidence[i])] if kind else frame.candidates.get(i, [])
                assert pairs == [(piece, round(1000 * p)) for piece, p in expected]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.html"]


def test_page_survives_any_piece(steps, tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    frame = steps[-1][0]
    write_html(tmp_path / "a.html", [dataclasses.replace(frame, pieces=[evil, "\x1b[2J\ud800", *frame.pieces[2:]])], "")
    page, data = html_data(tmp_path / "a.html")
    assert page.count("</script>") == 2
    assert {evil, "␛[2J\ufffd"} <= set(data["pieces"])


def test_without_a_terminal_a_line_a_step(steps, monkeypatch):
    written = []
    monkeypatch.setattr(trajectory, "note", written.append)
    console_in(monkeypatch)
    with LiveView() as view:
        for frames in steps:
            view.show(iter(frames))
        view.show(
            [dataclasses.replace(steps[-1][0], pieces=["word\n"] * 50 + [""] * 50, masked=[False] * 50 + [True] * 50)]
        )
    assert len(written) == len(steps) + 1
    first = steps[0][0]
    text = "".join(piece or "_" for piece in first.pieces)
    assert written[0] == f"step 1  1 passes  {sum(first.masked)} masks left  |{text}|"
    assert f"|{''.join(steps[-1][0].pieces)}|" in written[-2]
    tail = written[-1].split("|")[1]
    assert tail.startswith("...")
    assert tail.endswith("word\\n" + "_" * 50)
    assert len(tail) <= 103


@pytest.mark.parametrize("copies", [1, 20])
def test_live_view_ends_with_the_text(steps, monkeypatch, copies):
    buffer = console_in(monkeypatch, force_terminal=True)
    states = []
    with LiveView() as view:
        for frames in steps:
            view.show([dataclasses.replace(f, text=f.text + 2 * n) for n in range(copies) for f in frames])
            states.append(screen(buffer.getvalue()))
    lines = screen(buffer.getvalue())
    assert len(lines) <= 24
    assert lines[0].startswith(f"step {len(steps)}, {steps[-1][0].nfe} forward passes, 0 of {copies * 2 * NEW} masks")
    assert "".join(steps[-1][0].pieces) in lines
    assert "".join(steps[-1][1].pieces) in lines
    likeliest, best = max(((i, c[0]) for i, c in steps[0][0].candidates.items()), key=lambda pair: pair[1][1])
    assert any(line.startswith(f'pos {likeliest}: "{best[0]}" {best[1]:.2f}, ') for line in states[0])


def test_live_view_follows_what_happens_in_a_long_text(steps, monkeypatch):
    buffer = console_in(monkeypatch, force_terminal=True)
    frame, n = steps[-1][0], 60
    with LiveView() as view:
        for done in (1, 40, 50):
            masked = [i >= done for i in range(n)]
            pieces = ["" if m else f"line {i}\x1b[9A\n" for i, m in enumerate(masked)]
            lists = {
                "masked": masked,
                "pieces": pieces,
                "given": [False] * n,
                "confidence": [0.5] * n,
                "ids": [*range(n)],
            }
            view.show([dataclasses.replace(frame, **lists)])
    lines = screen(buffer.getvalue())
    assert len(lines) <= 24
    assert "line 49␛[9A" in lines
    assert any(line.startswith("▓" * 10) for line in lines)


def test_history_is_json(steps):
    frame = steps[0][1]
    line = json.loads(json.dumps(history_line(frame)))
    candidates = {i: [tuple(pair) for pair in pairs] for i, pairs in line.pop("candidates")}
    assert type(frame)(**line, candidates=candidates) == frame
