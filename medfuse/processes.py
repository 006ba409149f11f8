"""Which process something belongs to, whether that process is known to be gone, and what there is for more of them."""

import ctypes
import math
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # Linux, outside containers


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since boot: it tells a process from a later one of the same number.

    Returns:
        Empty when there is no such process, or only its remains; "some" where the system does not tell.
    """
    if Path("/proc/self/stat").exists():
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return "" if not fields or fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "some"
    return "some"


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def end_with_parent() -> None:
    """Called in a child process: it ends when its parent is killed, and does not wait forever for work (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before the call
        os._exit(1)


def usable_cores() -> int:
    """Processor cores that this process may use: in a container no more than its share of time is worth, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:  # control groups of version 1
        quota, period = (_text(f"/sys/fs/cgroup/cpu/cpu.cfs_{what}_us") for what in ("quota", "period"))
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:  # "max" and -1 are no limit
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def free_memory() -> int | None:
    """Bytes of memory that could be had now without swapping; None where the system does not tell (not Linux).

    In a container no more than its limit leaves, where pages of files count as used.
    """
    available = next((line for line in _text("/proc/meminfo").splitlines() if line.startswith("MemAvailable:")), "")
    if not available:
        return None
    limit, used = (_text(f"/sys/fs/cgroup/memory.{what}") for what in ("max", "current"))
    free = 1024 * int(available.split()[1])
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def held_memory() -> int:
    """Bytes of memory that this process holds for itself, pages of mapped files not counted; 0 where unknown."""
    line = next((line for line in _text("/proc/self/status").splitlines() if line.startswith("RssAnon:")), "")
    return 1024 * int(line.split()[1]) if line else 0


def one_thread() -> None:
    """Called in a child process: its libraries compute on one thread, for there is a process per core.

    Several processes of several threads each wait for one another: matrix products then take three times as long.
    """
    from threadpoolctl import threadpool_limits

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # of what is loaded later
        os.environ.setdefault(name, "1")
    threadpool_limits(1)


def process_tags() -> dict[str, str]:
    """Tags that tell this process from every other: host, number, machine, boot, container and time of start."""
    here = (_text("/etc/machine-id"), _text("/proc/sys/kernel/random/boot_id"), _namespace(), _started(os.getpid()))
    return {"medfuse.host": socket.gethostname(), "medfuse.pid": str(os.getpid()), "medfuse.process": "/".join(here)}


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process that set these tags is known to be gone; a doubt, as across containers, counts as alive."""
    ours = process_tags()
    here, there = ours["medfuse.process"].split("/"), tags.get("medfuse.process", "").split("/")
    pid = tags.get("medfuse.pid", "")
    if tags.get("medfuse.host") != ours["medfuse.host"] or len(there) != len(here) or not pid.isdigit():
        return False
    if there[1] != here[1]:  # another boot: gone with it, if it is the same machine and no container on either side
        return bool(here[0]) and there[0] == here[0] and there[2] == here[2] == _FIRST_PID_NAMESPACE
    return there[2] == here[2] and _started(int(pid)) != there[3]
