"""Evaluations, reports and samples on full disks, in read-only folders, under signals: nothing is lost or half done."""

import errno
import json
import os
import shutil
import signal
import time

import pytest

from smdiff.cli import main
from smdiff.errors import RunFailed, UserError
from smdiff.evaluation import store
from smdiff.evaluation.store import Lines, Store
from smdiff.files import write_whole
from tests.torture.evaluations import World, check_files, leftovers, outcome
from tests.torture.kill_evaluations import KINDS, ended, start, torture
from tests.torture.write_faults import Faults, injected

LOCK = "lock.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.made(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def plain_picture():
    """Drawing takes longer than all else; `report` draws the same picture below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "score_plot", lambda rows, path, title: write_whole(path, lambda p: p.write_bytes(b"png")))
        yield


@pytest.fixture(scope="module")
def undisturbed(world):
    """What each kind of evaluation finds, and how many things it does to its files."""
    found = {}
    for kind in KINDS:
        out = world.folder / kind
        with injected(Faults(out, skip=(LOCK, out.name))) as faults:
            assert main(world.command(kind, out)) == 0
        found[kind] = outcome(out), faults.count
    return found


def one_line(capsys) -> str:
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("smdiff: ")]
    assert len(said) == 1, said
    return said[0]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_evaluations_end_as_undisturbed_ones(kind, tmp_path):
    assert torture(kind, 1, 7, tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_on_a_full_disk_goes_on_when_there_is_room(kind, world, undisturbed, tmp_path, capsys):
    """`kill_evaluations.py --failures every` does it for every write."""
    whole, count = undisturbed[kind]
    out = tmp_path / "out"
    for at in (1, count // 2, count - 1):  # in one folder: each time it gets further
        capsys.readouterr()
        with injected(Faults(out, at, skip=(LOCK, out.name))):
            code = main(world.command(kind, out))
        if code:
            assert (code, "No space left on device" in one_line(capsys)) == (1, True)
        check_files(out)
    assert main(world.command(kind, out)) == 0
    assert outcome(out) == whole
    assert leftovers(out) == []


def every_failure(folder, work):
    """Call `work` with the n-th write failing, for every n, until it passes; how often it failed."""
    for at in range(1, 100):
        with injected(Faults(folder, at)) as faults:
            try:
                work()
            except RunFailed as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                continue
        assert faults.count < at
        return at - 1
    raise AssertionError("it never passes")


def test_lines_are_all_added_or_none(tmp_path):
    path, kept = tmp_path / "a" / "samples.jsonl", []
    for number in range(3):
        records = [{"task_id": f"{number}", "sample": i, "text": "é" * 3} for i in range(4)]
        lines = Lines(path)
        failures = every_failure(tmp_path, lambda lines=lines, records=records: lines.add(records))
        assert failures >= 2  # the write and its flush
        kept += records
        assert [json.loads(line) for line in path.read_text().splitlines()] == kept
    assert list(Lines(path).records.values()) == kept


def test_a_failed_add_leaves_no_part_of_a_line(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = Lines(path)
    lines.add([{"task_id": "a", "sample": 0}])
    before = path.read_bytes()
    with injected(Faults(tmp_path, 1)), pytest.raises(RunFailed):
        lines.add([{"task_id": "b", "sample": 0}])
    assert path.read_bytes() == before


@pytest.mark.parametrize("tail", [b'{"task_id": "b", "sam' + b"x" * 99, b"\0\0\0", b'{"task_id": "b", "sample": 0}'])
def test_the_rest_of_a_cut_line_is_replaced(tail, tmp_path):
    path = tmp_path / "samples.jsonl"
    whole = {"task_id": "a", "sample": 0}
    Lines(path).add([whole])
    path.write_bytes(path.read_bytes() + tail)
    lines = Lines(path)
    assert list(lines.records) == [("a", 0)]
    lines.add([{"task_id": "c", "sample": 0}])
    assert [json.loads(line)["task_id"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_records_of_a_batch_count_together(tmp_path):
    path = tmp_path / "samples.jsonl"
    Lines(path).add([{"task_id": "a", "sample": i} for i in range(3)])
    whole = path.read_bytes()
    Lines(path).add([{"task_id": "b", "sample": i} for i in range(3)])
    both = path.read_bytes()
    for cut in range(len(whole), len(both)):
        path.write_bytes(both[:cut])
        assert {key[0] for key in Lines(path).records} == {"a"}
    path.write_bytes(both)
    assert len(Lines(path).records) == 6
    path.write_bytes(both.replace(b" \n", b"\n"))  # as others write it
    assert len(Lines(path).records) == 6


def test_lines_that_vanish_are_told(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = Lines(path)
    lines.add([{"task_id": "a", "sample": 0}])
    path.unlink()
    with pytest.raises(RunFailed, match="it has lost lines"):
        lines.add([{"task_id": "b", "sample": 0}])


def test_all_lines_are_replaced_or_none(tmp_path):
    path = tmp_path / "samples.jsonl"
    Lines(path).add([{"task_id": "a", "sample": 0}])
    lines, new = Lines(path), [{"task_id": "b", "sample": 0}]

    def rewrite():
        try:
            lines.rewrite(new)
        except RunFailed:
            assert list(Lines(path).records) == [("a", 0)]
            raise

    assert every_failure(tmp_path, rewrite) == 3
    assert list(Lines(path).records.values()) == new


def test_the_facts_and_the_result_are_whole(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()

    def save():
        made = Store(folder, {"model": "m"})  # also in a folder where it failed before
        made.record(style="s")
        made.save()

    assert every_failure(folder, save) == 3
    found = {"schema": 1, "command": "eval-text", "results": [], "data": [], "config": {}}
    assert every_failure(folder, lambda: store.deliver(dict(found), folder, "title")) == 3 * 3
    assert json.loads((folder / "result.json").read_text())["out"] == str(folder)


def test_report_files_are_whole_or_not_there(world, undisturbed, tmp_path, capsys):
    csv, plot = tmp_path / "all.csv", tmp_path / "all.png"
    command = ["report", str(world.folder / "eval-text"), "--csv", str(csv), "--plot", str(plot)]
    with injected(Faults(tmp_path)) as faults:
        assert main(command) == 0
    plot.unlink()
    for at in (1, 3, faults.count):  # the first and the last of the CSV, the last of the picture
        csv.write_text("old")
        capsys.readouterr()
        with injected(Faults(tmp_path, at)):
            assert main(command) == 1
        assert "No space left on device" in one_line(capsys)
        assert csv.read_text().startswith("old" if at <= 3 else "command,model")
        assert not plot.exists()
        assert leftovers(tmp_path) == []
    assert main(command) == 0
    assert plot.read_bytes()[-8:-4] == b"IEND"


def test_steps_of_a_sample_are_whole_or_not_there(world, tmp_path, capsys):
    page, history = tmp_path / "steps.html", tmp_path / "steps.jsonl"
    command = ["sample", str(world.folder / "one"), "--length", "8", "--steps", "2", "--quiet"]
    command += ["--history", str(history), "--show", "html", "--show-to", str(page)]
    codes = []
    for at in range(1, 20):
        history.write_text("old")
        with injected(Faults(tmp_path, at)):
            codes.append(main(command))
        if not codes[-1]:
            break
        assert "No space left on device" in one_line(capsys)
        assert history.read_text() == "old" or len(history.read_text().splitlines()) == 2
        assert not page.exists()
        assert leftovers(tmp_path) == []
    assert codes == [1] * 6 + [0]
    assert page.read_text().endswith("</html>\n")


def test_files_are_not_put_in_the_place_of_devices(world, undisturbed, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    assert main(["report", str(world.folder / "eval-code"), "--csv", pipe]) == 2
    assert "is no file" in one_line(capsys)
    assert main(["sample", str(world.folder / "one"), "--history", pipe]) == 2
    assert "is no file" in one_line(capsys)
    link, target = tmp_path / "link.csv", tmp_path / "target.csv"
    link.symlink_to(target)
    assert main(["report", str(world.folder / "eval-code"), "--csv", str(link)]) == 0
    assert link.is_symlink()
    assert target.read_text().startswith("command,")


def test_a_folder_that_cannot_be_written(world, tmp_path, monkeypatch, capsys):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    made = Store(tmp_path / "out", {"model": "m"})
    made.record(style="s")
    monkeypatch.setattr("smdiff.evaluation.store.write_json", read_only)
    with pytest.raises(UserError, match="Read-only file system. Choose a folder that can be written") as raised:
        made.save()
    assert raised.value.exit_code == 2


def test_a_folder_that_vanishes_is_told_and_goes_on_when_it_is_back(world, undisturbed, tmp_path, monkeypatch, capsys):
    whole, _ = undisturbed["eval-code"]
    out, away, add = tmp_path / "out", tmp_path / "away", Lines.add
    calls = []

    def vanishing(self, records):
        add(self, records)
        calls.append(0)
        if len(calls) == 2:
            out.rename(away)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "add", vanishing)
        assert main(world.command("eval-code", out)) == 1
    assert "Mount or restore the folder" in one_line(capsys)
    assert not out.exists()
    away.rename(out)
    assert main(world.command("eval-code", out)) == 0
    assert outcome(out) == whole


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)])
def test_signals_stop_it_with_the_work_saved(signals, world, undisturbed, tmp_path):
    whole, _ = undisturbed["eval-code"]
    out = tmp_path / "out"
    pid = start(world.command("eval-code", out), Faults(out))
    while not (out / "eval.json").exists():
        time.sleep(0.005)
    for number in signals:
        os.kill(pid, number)
    assert ended(pid) == 130
    check_files(out)
    assert main(world.command("eval-code", out)) == 0
    assert outcome(out) == whole


def test_two_processes_do_not_share_a_folder(world, tmp_path, capsys):
    out = tmp_path / "out"
    pid = start(world.command("eval-code", out), Faults(out))
    while not (out / "eval.json").exists():
        time.sleep(0.005)
    os.kill(pid, signal.SIGSTOP)
    assert main(world.command("eval-code", out)) == 2
    assert f"process {pid} " in one_line(capsys)
    os.kill(pid, signal.SIGCONT)
    assert ended(pid) == 0
    shutil.rmtree(out)


def test_programs_of_a_killed_re_extraction_have_no_old_verdicts(world, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(world.folder / "eval-code", out)
    command = [*world.command("eval-code", out), "--re-extract"]
    verdicts = 2 * 4  # flush and move an empty graded.jsonl of each arm; then come the samples
    for at in (3, verdicts + 2, verdicts + 5):
        assert ended(start(command, Faults(out, at, kill=True, skip=(LOCK,)))) == -signal.SIGKILL
        assert at < verdicts or not any(p.read_text() for p in out.rglob("graded.jsonl"))
    assert main(command) == 0
    assert outcome(out) == undisturbed["eval-code"][0]
