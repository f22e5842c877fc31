import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from smdiff import lock
from smdiff.errors import RunFailed, UserError
from smdiff.lock import check_held, locked

HOLDS = """
import os, sys, time
from pathlib import Path
from smdiff.lock import locked
with locked(Path(sys.argv[1])):
    worker = os.fork()  # as data loaders do; it outlives a kill of its parent
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / "out", and a worker that it forked."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)


def test_a_second_process_is_refused_and_a_killed_one_succeeded(other, tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(UserError, match=rf"process {other.pid} on {socket.gethostname()} works there, since 20") as why,
        locked(out),
    ):
        pass
    assert why.value.exit_code == 2
    assert "choose another folder" in str(why.value)
    other.kill()
    other.wait()
    assert json.loads((out / "lock.json").read_text())["pid"] == other.pid
    with locked(out):
        assert json.loads((out / "lock.json").read_text())["pid"] == os.getpid()
    assert not (out / "lock.json").exists()


def test_the_same_process_is_refused_too_and_released_folders_are_free(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(tmp_path):
        pass
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        check_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a" / "b").exists()
    with locked(tmp_path):
        pass
    assert tmp_path.exists()


def stored(tmp_path, **other):
    owner = {"pid": 2**22 + 1, "host": "elsewhere", "boot": "another", "since": "then"} | other
    (tmp_path / "lock.json").write_text(json.dumps(owner))


def test_another_machine_cannot_be_asked(tmp_path):
    stored(tmp_path)
    with (
        pytest.raises(UserError, match=r"4194305 on elsewhere: from this machine .* remove .*lock\.json"),
        locked(tmp_path),
    ):
        pass
    stored(tmp_path, boot=lock._me()["boot"])  # a container of this machine, which the kernel knows of
    with locked(tmp_path):
        pass
    stored(tmp_path, host=socket.gethostname())  # this machine, before it started again
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": "x", "host": "y"}', '{"pid": 1e400, "host": 1}', "\0" * 9])
def test_what_a_cut_file_says_does_not_matter(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    with locked(tmp_path):
        pass


def test_without_locks_of_the_kernel_the_process_is_asked_for(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    stored(tmp_path, pid=os.getppid(), host=socket.gethostname())
    with pytest.raises(UserError, match=f"process {os.getppid()} on"), locked(tmp_path):
        pass
    stored(tmp_path, host=socket.gethostname())
    with locked(tmp_path):
        pass


def test_a_file_removed_between_opening_and_locking_is_not_held(tmp_path, monkeypatch):
    original, calls = fcntl.flock, []

    def flock(descriptor, how):
        if not calls:
            (tmp_path / "lock.json").unlink()  # as one that ends its work in this moment does
        calls.append(how)
        original(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(calls) == 2
        check_held(tmp_path)


def test_a_folder_that_went_away_is_told(tmp_path):
    out = tmp_path / "out"
    with locked(out):
        out.rename(tmp_path / "gone")
        out.mkdir()
        with pytest.raises(RunFailed, match=r"no longer the folder .*lock\.json.* Mount or restore"):
            check_held(out)
        (out / "lock.json").write_text("another's")
        with pytest.raises(RunFailed):
            check_held(out)
    assert (out / "lock.json").exists()
    check_held(out)  # nothing is held


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write to .*file/out: Not a directory\. Make room"),
        locked(tmp_path / "file" / "out"),
    ):
        pass


def test_only_the_first_rank_takes_it(tmp_path, monkeypatch):
    with locked(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with locked(tmp_path):
            pass
        assert (tmp_path / "lock.json").exists()


def test_many_at_once_are_one_at_a_time(tmp_path):
    """Eight processes fight for one folder; each writes its number, looks whether it stays, and lets go."""
    script = """
import sys, time
from pathlib import Path
from smdiff.errors import UserError
from smdiff.lock import locked
out, mine = Path(sys.argv[1]), sys.argv[2]
done = 0
while done < 20:
    try:
        with locked(out):
            (out / "who").write_text(mine)
            time.sleep(0.0005)
            assert (out / "who").read_text() == mine
            done += 1
    except UserError:
        time.sleep(0.0005)
"""
    commands = [[sys.executable, "-c", script, str(tmp_path), str(i)] for i in range(4)]
    processes = [subprocess.Popen(c) for c in commands]
    assert [p.wait() for p in processes] == [0] * 4
