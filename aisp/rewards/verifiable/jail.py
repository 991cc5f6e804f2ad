"""The other side of the sandbox: a script that `sandbox` starts, and that runs untrusted code.

It imports the standard library only, and nobody imports it. Three processes, each of which knows no
more than it needs:

- *launcher*: reads the job from stdin, walls itself in (`walls`), starts the warden, and ends with it;
- *warden*: process 1 of its own process namespace where there is one; starts a fresh inmate for each
  test, believes it only if it returns that test's token in time, and kills whatever it left behind;
- *inmate*: has limits instead of rights; runs the code, then one test, then writes the token.

The job is one line of JSON: code, tests, limits, path (of numpy), namespaces. The answer is the number
of tests that passed, as text on stdout.
"""

import builtins
import ctypes
import json
import os
import random
import resource
import select
import signal
import sys
import time
import types
from contextlib import suppress
from typing import Any

NOBODY = 65534
NEW_USER, NEW_MOUNTS, NEW_NET, NEW_PIDS, NEW_IPC = 1 << 28, 1 << 17, 1 << 30, 1 << 29, 1 << 27
MS_REC, MS_PRIVATE, MS_NOSUID_NODEV = 1 << 14, 1 << 18, 6
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
SET_PDEATHSIG, SET_KEEPCAPS, SET_NO_NEW_PRIVS = 1, 8, 38
CAPABILITY_VERSION, CAP_READ = 0x20080522, 1 << 2  # CAP_DAC_READ_SEARCH
CODE = "<code>"
# Methods by which an object could decide how a comparison in a test ends.
JUDGES = ("eq", "ne", "lt", "le", "gt", "ge", "sub", "rsub", "abs", "float", "contains", "array")
# Audit events that the weaker sandbox refuses; writing outside the directory is refused besides.
REFUSED = (
    *("socket.", "subprocess.", "ctypes.", "shutil.", "pty.", "syslog.", "signal.pthread_kill"),
    *("os.system", "os.fork", "os.posix_spawn", "os.exec", "os.spawn", "os.kill"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"),
)


class Refused(Exception):
    """What the code is told where the weaker sandbox stops it."""


class _Attributes(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def call(name: str, *args: Any) -> None:
    """A function of libc that returns 0; OSError where it does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def walls(limits: dict[str, Any], root: bool) -> bool:
    """Namespaces for this process and those to come; False where the kernel refuses them.

    No network, no other processes in sight, every file system read-only, and a small one in memory as
    the working directory.
    """
    here = os.getcwd()
    uid, gid = os.getuid(), os.getgid()
    spaces = NEW_MOUNTS | NEW_NET | NEW_PIDS | NEW_IPC
    try:
        call("unshare", spaces if root else spaces | NEW_USER)
        if not root:
            for file, text in (("setgroups", "deny"), ("uid_map", uid), ("gid_map", gid)):
                with open(f"/proc/self/{file}", "w") as out:
                    out.write(text if isinstance(text, str) else f"{text} {text} 1")
        call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
        attributes = _Attributes(set=READ_ONLY)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        call(
            "syscall",
            ctypes.c_long(MOUNT_SETATTR),
            AT_FDCWD,
            b"/",
            AT_RECURSIVE,
            ctypes.byref(attributes),
            size,
        )
        options = f"mode=777,size={limits['disk_bytes']},nr_inodes=1000".encode()
        flags = ctypes.c_ulong(MS_NOSUID_NODEV)
        call("mount", b"scratch", here.encode(), b"tmpfs", flags, options)
        os.chdir(here)
    except (OSError, AttributeError):  # no such function: not Linux
        return False
    return True


def new_proc() -> None:
    """/proc of the new process namespace, where that is allowed: the old one shows all processes."""
    with suppress(OSError):
        call("mount", b"proc", b"/proc", b"proc", ctypes.c_ulong(MS_NOSUID_NODEV), None)


def become(uid: int, reader: bool) -> None:
    """Root turns into a user without rights, or with one: to read the files that root may read."""
    if reader:
        call("prctl", SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    if reader:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        call("capset", header, (ctypes.c_uint32 * 6)(CAP_READ, CAP_READ))


def free_uid() -> int:
    """A user id that nobody else has, so that RLIMIT_NPROC counts this sandbox alone."""
    uid = 2**30 + os.getpid()
    try:
        os.chown(".", uid, uid)
    except OSError:  # a container that maps fewer
        uid = NOBODY
        os.chown(".", uid, uid)
    return uid


def can_read(uid: int, paths: list[str]) -> bool:
    """Whether Python works for that user; for root only, found out in a process of its own."""
    child = os.fork()
    if child == 0:
        become(uid, False)
        os._exit(not all(os.access(path, os.R_OK) for path in paths))
    return os.waitpid(child, 0)[1] == 0


def limit(limits: dict[str, Any], counted: bool) -> None:
    """Resource limits of an inmate; one that this system lacks is left out.

    Args:
        counted: whether processes are counted for this sandbox, not for all of the user.
    """
    for name, value in (
        ("CPU", limits["cpu_seconds"]),
        ("AS", limits["memory_bytes"]),
        ("FSIZE", limits["file_bytes"]),
        ("NOFILE", limits["open_files"]),
        ("CORE", 0),
        *([("NPROC", limits["processes"])] if counted else []),
    ):
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def refuse_by_hook(here: str) -> None:
    """The weaker wall: Python's own functions refuse network, processes and writing elsewhere."""
    write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    inside, real, fspath, join = here + os.sep, os.path.realpath, os.fspath, os.path.join

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & write:
            path = args[0]
            if not isinstance(path, int):
                path = os.fsdecode(fspath(path))
                if path != os.devnull and not (real(join(here, path)) + os.sep).startswith(inside):
                    raise Refused(f"the sandbox lets nothing write to {path}")
        elif event.startswith(REFUSED):
            raise Refused(f"the sandbox does not let code do {event}")

    sys.addaudithook(hook)


def decides_comparisons(value: Any) -> bool:
    """Whether a result has, or contains, a comparison that the code itself has written."""
    for kind in type(value).__mro__:
        for name in JUDGES:
            method = vars(kind).get(f"__{name}__")
            if isinstance(method, types.FunctionType) and method.__code__.co_filename == CODE:
                return True
    if isinstance(value, dict):
        return any(map(decides_comparisons, value.keys())) or any(
            map(decides_comparisons, value.values())
        )
    return isinstance(value, list | tuple | set | frozenset) and any(
        map(decides_comparisons, value)
    )


def guarded(function: Any) -> Any:
    """The function as tests see it: it may not return an object that says it equals everything."""

    def call_it(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        if decides_comparisons(value):
            raise Refused("the result brings its own comparison")
        return value

    return call_it


def holds(code: str, test: str) -> bool:
    """Whether a test passes, in an interpreter that the code has had to itself before."""
    pristine = dict(vars(builtins))
    module = types.ModuleType("solution")
    sys.modules["solution"] = sys.modules["__main__"] = module
    space = vars(module)
    try:
        exec(compile(code, CODE, "exec", dont_inherit=True), space)
        seen = {
            name: guarded(value) if isinstance(value, types.FunctionType) else value
            for name, value in space.items()
        }
        seen["__builtins__"] = pristine  # not the ones that the code may have replaced
        exec(compile(test, "<test>", "exec", dont_inherit=True), seen)
    except BaseException:  # SystemExit, KeyboardInterrupt and what the code makes up as well
        return False
    return True


def inmate(job: dict[str, Any], test: str, answer: int, token: bytes) -> None:
    """Give up every right, run one test, answer with the token if it passes. Does not return."""
    write, leave = os.write, os._exit  # the code may replace them
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.closerange(3, answer)
        os.closerange(answer + 1, 4096)
        if counted := job["root"]:
            become(job["uid"], job["reader"])
        if sys.platform == "linux":
            call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if not job["root"]:  # a user namespace inside gives up what rights the warden has
                with suppress(OSError):
                    call("unshare", NEW_USER)
                    counted = True
        limit(job["limits"], counted)
        random.seed(0)
        if not job["walled"]:
            refuse_by_hook(os.path.realpath(os.getcwd()))
        passed = holds(job["code"], test)
    except BaseException:
        leave(1)
    write(answer, token if passed else b"-")
    leave(0)


def tested(job: dict[str, Any], test: str) -> bool:
    """One test in an inmate of its own; nothing that it started is alive afterwards."""
    token = os.urandom(16).hex().encode()
    answer, inmates_end = os.pipe()
    child = os.fork()
    if child == 0:
        inmate(job, test, inmates_end, token)
    os.close(inmates_end)
    said = b""
    deadline = time.monotonic() + job["limits"]["wall_seconds"]
    while len(said) < len(token) and (left := deadline - time.monotonic()) > 0:
        if not select.select([answer], [], [], left)[0]:
            break
        piece = os.read(answer, len(token) - len(said))
        said += piece
        if not piece or said == b"-":
            break
    os.close(answer)
    if os.getpid() == 1:  # of a process namespace: everybody else in it
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    else:
        os.kill(child, signal.SIGKILL)  # not yet waited for: the number is still its own
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:  # nobody left
            return said == token


def warden(job: dict[str, Any], out: int) -> None:
    """Run every test and write how many passed. Does not return."""
    if sys.platform == "linux":
        call("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if job["walled"]:
        new_proc()
    count = sum(tested(job, test) for test in job["tests"])
    os.write(out, str(count).encode())
    os._exit(0)


def main() -> None:
    """The launcher."""
    job = json.load(sys.stdin)
    # Whatever becomes of the caller, this process ends, and the warden and all inmates with it.
    signal.alarm(1 + int(job["patience"]))
    sys.path += job["path"]
    root = job["root"] = os.getuid() == 0
    if root:
        job["uid"] = free_uid()
        readable = can_read(job["uid"], [os.__file__, *job["path"]])
        job["reader"] = sys.platform == "linux" and not readable
    job["walled"] = job["namespaces"] and walls(job["limits"], root)
    child = os.fork()
    if child == 0:
        os.close(0)
        warden(job, 1)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
