"""How texts are denoised: drawn on the terminal while it happens, or kept as a page to step through."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from smdiff.files import write_whole
from smdiff.ui import console
from smdiff.ui.console import err, note, out

if TYPE_CHECKING:
    from smdiff.decoding.trajectory import Frame

_GIVEN, _FRESH, _MASK = "dim", "black on yellow", "default"
_BLOCKS = "░▒▓█"
_SOFT = ("dim italic", "dim italic cyan", "italic cyan", "bold italic cyan")
_LISTED, _LEAST_LINES, _PLAIN_WIDTH = 4, 5, 100

# Terminals obey some characters: controls become their pictures, direction marks and halves of pairs a stand-in.
_HARMLESS = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {127: 0x2421}
_HARMLESS |= dict.fromkeys(
    [*range(0x80, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], 0xFFFD
)


def _written(frame: Frame, i: int) -> str:
    """What the token at `i` shows: a run of ends of text is spelt out once."""
    piece = frame.pieces[i].translate(_HARMLESS)
    return "·" if i and piece.startswith("<|") and piece == frame.pieces[i - 1] else piece


def history_line(frame: Frame) -> dict[str, Any]:
    """The frame as JSON values; `candidates` is a list of [position, [[piece, probability], ...]]."""
    return vars(frame) | {"candidates": [[i, [list(pair) for pair in c]] for i, c in frame.candidates.items()]}


class LiveView:
    """Shows the texts of the current batch: redrawn in place on a terminal, elsewhere the first one, a line a step."""

    def __init__(self) -> None:
        self._terminal = err.is_terminal and not console._quiet
        self._live: Live | None = None
        self._hidden: dict[int, list[bool]] = {}
        self._top: dict[int, int] = {}

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()

    def settle(self) -> None:
        """Leave the last state on the screen; what is printed next goes below it."""
        if self._live:
            self._live.stop()
            self._live = None  # a new one starts where the cursor is then; this one would draw over what was printed

    def show(self, frames: Iterable[Frame]) -> None:
        """Draw one frame for each text of the batch."""
        frames = list(frames)
        step, nfe, left = frames[0].step + 1, frames[0].nfe, sum(sum(f.masked) for f in frames)
        if not self._terminal:
            note(f"step {step}  {nfe} passes  {sum(frames[0].masked)} masks left  |{_plain(frames[0])}|")
            return
        total = sum(f.given.count(False) for f in frames)
        lines = [Text(f"step {step}, {nfe} forward passes, {left} of {total} masks left", "bold", no_wrap=True)]
        # Besides its own lines a text has a heading and its candidates. What a short one leaves goes to the next ones.
        shown = max(1, min(len(frames), (err.height - 2) // (_LEAST_LINES + 2)))
        for n, frame in enumerate(frames[:shown]):
            lines += self._drawn(frame, max(1, (err.height - 1 - len(lines)) // (shown - n) - 2))
        self._hidden = {f.text: f.masked for f in frames}
        if self._live is None:
            # Results that go to a file or a pipe must still get there.
            self._live = Live(
                console=err, auto_refresh=False, redirect_stdout=out.is_terminal, vertical_overflow="crop"
            )
            self._live.start()
        self._live.update(Group(*lines), refresh=True)

    def _drawn(self, frame: Frame, room: int) -> list[Text]:
        """Heading, at most `room` lines of the text, candidates."""
        hidden = self._hidden.get(frame.text, [True] * len(frame.masked))
        text = Text()
        for i, masked in enumerate(frame.masked):
            level = min(int(frame.confidence[i] * 4), 3)
            if not masked:
                text.append(_written(frame, i), _GIVEN if frame.given[i] else _FRESH if hidden[i] else None)
            elif frame.soft and i in frame.candidates:
                piece = frame.candidates[i][0][0].translate(_HARMLESS).replace("\n", "↵")
                text.append(piece if piece.strip(" ") else "␣" * len(piece), _SOFT[level])
            else:
                text.append(_BLOCKS[level], _MASK)
        lines = list(text.wrap(err, err.width))
        styles = [{span.style for span in line.spans} for line in lines]
        busy = [n for n, s in enumerate(styles) if _FRESH in s]
        busy = busy or [n for n, s in enumerate(styles) if s & {_MASK, *_SOFT}]
        # Stay in place as long as something happens there.
        top = self._top.get(frame.text, 0)
        if busy and not any(top <= n < top + room for n in busy):
            top = busy[-1] - room // 2
        self._top[frame.text] = top = max(0, min(top, len(lines) - room))
        where = f", lines {top + 1} to {top + room} of {len(lines)}" if len(lines) > room else ""
        heading = Text(f"── text {frame.text}{where}", _GIVEN, no_wrap=True)
        listed = Text(_listed(frame), _GIVEN, no_wrap=True, overflow="ellipsis")
        return [heading, *lines[top : top + room], listed]


def _plain(frame: Frame) -> str:
    """The end of the text, on one line."""
    text = "".join("_" if m else _written(frame, i) for i, m in enumerate(frame.masked)).replace("\n", "\\n")
    tail = text[-_PLAIN_WIDTH:]
    # From the start of a word, unless that is far.
    return text if text == tail else "..." + tail[max(0, tail.find(" ", 0, _PLAIN_WIDTH // 5)) :]


def _listed(frame: Frame) -> str:
    """The candidates of the masks that are closest to decided."""

    def pairs(i: int) -> str:
        quoted = ((json.dumps(c.translate(_HARMLESS), ensure_ascii=False), p) for c, p in frame.candidates[i])
        return f"pos {i}: " + ", ".join(f"{c} {p:.2f}" for c, p in quoted)

    return "   ".join(map(pairs, sorted(frame.candidates, key=lambda i: -frame.confidence[i])[:_LISTED]))


def write_html(path: Path, frames: Sequence[Frame], title: str) -> None:
    """Write a page that needs nothing else: a slider over the steps, and what every mask was about to become."""
    texts: dict[int, list[Frame]] = {}
    for frame in frames:
        texts.setdefault(frame.text, []).append(frame)
    pieces: dict[str, int] = {}
    data = {"texts": [_packed(t, pieces) for t in texts.values()], "pieces": list(pieces)}
    # "<" could end the script element.
    parts = {"title": html.escape(title), "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")}
    page = re.sub("@(title|data)@", lambda match: parts[match[1]], _PAGE)
    write_whole(path, lambda p: p.write_text(page, encoding="utf-8"))


def _packed(frames: list[Frame], pieces: dict[str, int]) -> dict[str, Any]:
    """One text: its steps, each with its number, the passes, and the cells that changed.

    A cell is its kind, 0 for a mask, 1 written, 2 given, then index in `pieces` and permille of each candidate or of
    the token. `pieces` takes in those it lacks.
    """

    def cell(f: Frame, i: int) -> list[int]:
        kind = 0 if f.masked[i] else 2 if f.given[i] else 1
        flat = [kind]
        for piece, p in [(f.pieces[i], f.confidence[i])] if kind else f.candidates.get(i, ()):
            flat += pieces.setdefault(piece.translate(_HARMLESS), len(pieces)), round(1000 * p)
        return flat

    first = frames[0]
    before: dict[int, list[int]] = {}
    steps = []
    start = replace(first, step=-1, nfe=0, masked=[not given for given in first.given], candidates={})
    for f in [start, *frames] if first.step >= 0 else frames:
        cells = {i: cell(f, i) for i in range(len(f.ids))}
        steps.append([f.step + 1, f.nfe, {i: c for i, c in cells.items() if before.get(i) != c}])
        before = cells
    return {"name": first.text, "soft": first.soft, "steps": steps}


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>@title@</title>
<style>
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1b1b; --dim: #707070; --new: #ffe28a; --mask: 30 90 170 }
@media (prefers-color-scheme: dark) {
  :root { --bg: #161618; --fg: #e8e8e8; --dim: #929292; --new: #6e5600; --mask: 110 170 255 } }
body { margin: 0 auto; max-width: 104ch; padding: 1em 2ch; background: var(--bg); color: var(--fg);
  font: 15px/1.7 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
header { position: sticky; top: 0; padding: .5em 0; background: var(--bg); border-bottom: 1px solid var(--dim) }
header > div { display: flex; gap: 1.5ch } #at { flex: 1; accent-color: rgb(var(--mask)) }
button, select { font: inherit; min-width: 8ch }
#text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 1em 0 } footer { color: var(--dim); font-size: .85em }
.given, .break { color: var(--dim) } .written, .fresh { color: var(--fg) }
.fresh { background: var(--new); border-radius: 3px }
.mask { display: inline-block; min-width: 1.2ch; line-height: 1.3; margin: 0 1px; border-radius: 3px;
  background: rgb(var(--mask) / calc(.12 + .8 * var(--p))) }
.soft { font-style: italic; color: color-mix(in srgb, var(--fg) calc(60% + 40% * var(--p)), var(--bg));
  background: rgb(var(--mask) / calc(.08 + .3 * var(--p))) }
#tip { position: fixed; pointer-events: none; white-space: pre; padding: .2em 1ch; line-height: 1.4;
  background: var(--fg); color: var(--bg); border-radius: 4px }
</style></head><body><b>@title@</b>
<header><div><button id="play">Play</button><input id="at" type="range" min="0" aria-label="step">
<select id="which" aria-label="text"></select></div><span id="status"></span></header><div id="text"></div>
<footer><span class="given">prompt</span> &ensp; <span class="written">written</span> &ensp;
<span class="fresh">just written</span> &ensp; masks, unsure to sure: <span class="mask" style="--p:0">&nbsp;</span
><span class="mask" style="--p:.5">&nbsp;</span><span class="mask" style="--p:1">&nbsp;</span><span id="fed"> &ensp;
<span class="mask soft" style="--p:.6">likeliest token</span> of a mask, fed back into it</span><br>
Point at anything for its probabilities. Left, right, Home, End: steps. Space: play.</footer><div id="tip" hidden></div>
<script type="application/json" id="data">@data@</script>
<script>
"use strict";
const $ = id => document.getElementById(id), data = JSON.parse($("data").textContent);
const pieces = data.pieces, prob = n => (n / 1000).toFixed(3), quoted = n => JSON.stringify(pieces[n]);
let text, last, now, timer, x = -1, y = -1;
for (const { name } of data.texts) $("which").add(new Option("text " + name));
$("which").hidden = data.texts.length < 2;

function span(className, ...content) {
  const made = Object.assign(document.createElement("span"), { className });
  made.append(...content);
  return made;
}

function drawn({ cell: [kind, piece, p], since }, i, { [i - 1]: before }) {
  // A run of ends of text is spelt out once.
  const again = before?.cell[0] && before.cell[1] === piece && pieces[piece].startsWith("<|");
  const lines = again ? "·" : pieces[piece]?.split("\\n").flatMap((l, n) => n ? [span("break", "↵"), "\\n", l] : [l]);
  const likeliest = text.soft && pieces[piece]?.replaceAll("\\n", "↵").replace(/^ +$/, "␣");
  const made = kind ? span(kind === 2 ? "given" : since === now ? "fresh" : "written", ...lines)
    : likeliest ? span("mask soft", likeliest) : span("mask", "\\u00a0");
  made.style.setProperty("--p", (p || 0) / 1000);
  made.dataset.i = i;
  return made;
}

function told(i) {
  const { cell: [kind, ...rest], since } = text.states[now][i], lines = ["position " + i];
  if (kind === 2) lines.push("prompt");
  else if (kind === 1) lines.push(`${quoted(rest[0])} in step ${text.steps[since][0]}`, `probability ${prob(rest[1])}`);
  else for (let n = 0; n < rest.length; n += 2) lines.push(prob(rest[n + 1]) + " " + quoted(rest[n]));
  return lines.join("\\n");
}

function point() {
  const tip = $("tip"), over = document.elementFromPoint(x, y)?.closest("[data-i]");
  tip.hidden = !over;
  if (over) tip.textContent = told(over.dataset.i);
  tip.style.left = Math.max(0, Math.min(x + 12, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.min(y + 18, innerHeight - tip.offsetHeight - 8) + "px";
}

function go(to) {
  now = Math.max(0, Math.min(to, last));
  const left = state => state.filter(({ cell }) => cell[0] === 0).length, [step, passes] = text.steps[now];
  $("at").value = now;
  $("status").textContent = `step ${step} of ${text.steps[last][0]}, ${passes} forward passes, ` +
    `${left(text.states[now])} of ${left(text.states[0])} masks left`;
  $("text").replaceChildren(...text.states[now].map(drawn));
  if (now === last) play(false);
  point();
}

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => go(now + 1), Math.max(40, Math.min(400, 15000 / last))) : 0;
  $("play").textContent = on ? "Pause" : "Play";
}

function choose() {
  text = data.texts[$("which").selectedIndex];
  last = $("at").max = text.steps.length - 1;
  let state = [];
  text.states = text.steps.map(([, , changed], since) => {
    state = state.slice();
    for (const i in changed) state[i] = { cell: changed[i], since };
    return state;
  });
  $("fed").hidden = !text.soft;
  play(false);
  go(0);
}

$("play").onclick = () => { if (!timer && now === last) go(0); play(!timer); };
$("at").oninput = () => { play(false); go(+$("at").value); };
$("which").onchange = choose;
onpointermove = event => { [x, y] = [event.clientX, event.clientY]; point(); };
onkeydown = event => {
  const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key], space = event.key === " ";
  const theirs = event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "SELECT";
  if (theirs || (space ? event.target.tagName === "BUTTON" : to === undefined)) return;
  event.preventDefault();
  if (space) return $("play").click();
  play(false);
  go(to);
};
choose();
</script></body></html>
"""
