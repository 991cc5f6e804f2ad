"""Code that is checked by its tests: responses run in processes of their own, and one number comes out.

`share` is what a reward calls: from a response and a prompt's `checks` (columns of HumanEval, MBPP or
MBPP+) to the share of tests that pass. `passed` is the same for code and tests as text.

WHAT IT IS. Protection against the accidents of a language model, not against an adversary. The code
runs in a fresh process for each test, in an empty environment and a temporary directory, with limits on
time, memory, files and processes, its output thrown away; whatever it started is killed. On Linux
with user namespaces (or as root) there are walls as well: no network, no other processes in sight, all
file systems read-only but for a small one in memory, and root becomes the user nobody if that one
can read Python. Elsewhere (macOS, which also ignores the memory limit; a container or kernel that
forbids namespaces) Python's audit hook refuses network, new processes and writing elsewhere, which stops
Python code and no machine code. Windows has neither, and is an error.

WHAT CANNOT FORGE A PASS. Ending the process, with any status, or by an exception of any kind; printing
or writing to every descriptor (a test passes only if a random token comes back for it); replacing
`builtins`; returning an object that equals everything; functions called at exit; threads.

WHAT IT CANNOT STOP. Code that looks for the token or the tests in the frames or the memory of its own
process; that replaces a function of a library which the test calls (`math.isclose`), or defines a
function by the name of a builtin that the test calls; that knows the expected values. Reading every
file that the user (as root: nobody) may read. Connecting to a Unix socket in the file system. Use a
virtual machine against code that means harm.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aisp.checks import check_real, check_whole, flag, whole

MEBI = 2**20
_JAIL = Path(__file__).with_name("jail.py")
# No shell, user site, site-packages (numpy's folder is added) or .pyc files; nothing of the caller's
# environment; sets in the same order each time.
_PYTHON = (sys.executable, "-s", "-S", "-P", "-B", str(_JAIL))
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_STARTUP = 60.0  # seconds in which the sandbox itself must have started, on a busy machine
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.M | re.S)
_PYTHON_NAMES = ("python", "python3", "py")


@dataclass(frozen=True)
class Limits:
    """What each test may use; a test that needs more fails.

    Args:
        wall_seconds: from the start of the test's process, the code's own top level included.
        cpu_seconds: whole seconds of computation of one process.
        memory_bytes: address space of one process, the interpreter's 20 MiB included.
        file_bytes: size of one file.
        disk_bytes: all files together, with namespaces (in memory).
        open_files: descriptors of one process.
        processes: and threads, all together. Root is not bound by it where it cannot become nobody.
        namespaces: False does with the audit hook what namespaces do otherwise (see above).
    """

    wall_seconds: float = 4.0
    cpu_seconds: int = 3
    memory_bytes: int = 1024 * MEBI
    file_bytes: int = 4 * MEBI
    disk_bytes: int = 16 * MEBI
    open_files: int = 64
    processes: int = 8
    namespaces: bool = True

    def __post_init__(self) -> None:
        check_real(self, "wall_seconds", above=0)
        check_whole(self, "cpu_seconds", "processes")
        check_whole(self, "memory_bytes", least=64 * MEBI, note=" (64 MiB: Python itself)")
        check_whole(self, "file_bytes", "disk_bytes", least=4096)
        check_whole(self, "open_files", least=16)
        flag("namespaces", self.namespaces)


DEFAULTS = Limits()


def passed(code: str, tests: Sequence[str] | str, *, limits: Limits = DEFAULTS) -> float:
    """The share of tests that pass, in [0, 1].

    Args:
        code: a program that defines what the tests use. Its module is not `__main__`.
        tests: programs, one or several, each run after the code, in a process of its own, with the
            code's names. A test passes if it ends without an exception.

    Raises:
        ValueError: no tests.
        RuntimeError: on Windows, or if the sandbox itself does not work. Never because of the code.
    """
    tests = [tests] if isinstance(tests, str) else list(tests)
    if not tests:
        raise ValueError("the list of tests is empty; give at least one test")
    if sys.platform == "win32":
        raise RuntimeError(
            "running untrusted code needs the process limits of Linux or macOS, and this is Windows; "
            "use the Windows Subsystem for Linux"
        )
    patience = len(tests) * limits.wall_seconds + _STARTUP
    job = {
        "code": code,
        "tests": tests,
        "limits": asdict(limits),
        "namespaces": limits.namespaces,
        "path": _numpy_folder(),
        "patience": patience,
    }
    with TemporaryDirectory(prefix="aisp-sandbox-", ignore_cleanup_errors=True) as folder:
        answer, error = _run(json.dumps(job).encode(), folder, patience + 5)
    if not answer.isdigit() or int(answer) > len(tests):
        said = error.decode(errors="replace").strip()[-500:] or "nothing on stderr"
        raise RuntimeError(
            f"the sandbox gave no answer ({answer[:20]!r}); {_JAIL.name} said: {said}"
        )
    return int(answer) / len(tests)


def extract(response: str) -> str:
    """The code of a response: its first fenced block marked as Python, else its first fenced block
    without a language, else all of it.

    A block that the end of the response cuts off counts. Later blocks show how to call the function.
    """
    blocks = [(match[1].lower(), match[2]) for match in _FENCE.finditer(response)]
    for names in (_PYTHON_NAMES, ("",)):
        for name, block in blocks:
            if name in names:
                return block
    return response


def programs(checks: Mapping[str, Any], response: str) -> tuple[str, list[str]]:
    """A response and its checks as code and tests.

    Args:
        checks: columns of HumanEval (`test`, which defines `check(candidate)`, and `entry_point`;
            also `prompt`, which goes before the response, so that its imports are there, and a
            response may be the function's body alone), or of MBPP and MBPP+ (`test`, one program, if
            there is one, else `test_list`, of one test each; also `test_imports` or
            `test_setup_code`, which go before each).

    Raises:
        ValueError: neither tests, or columns of the wrong type.
    """
    entry, code = _text(checks, "entry_point"), extract(response)
    if entry and not entry.isidentifier():
        raise ValueError(f"entry_point is {entry!r}; it must be the name of a function")
    test = _text(checks, "test")
    tests = [test] if test else _texts(checks, "test_list")
    if not tests:
        raise ValueError(
            f"the checks have {sorted(checks)}; code needs `test` (HumanEval with `entry_point`, MBPP+) "
            "or `test_list` (MBPP)"
        )
    if entry:
        code = f"{_text(checks, 'prompt')}\n{code}"
        tests = [f"{test}\n\ncheck({entry})\n" for test in tests]
    setup = "\n".join([*_texts(checks, "test_imports"), _text(checks, "test_setup_code")]).strip()
    return code, [f"{setup}\n{test}" if setup else test for test in tests]


def share(checks: Mapping[str, Any], response: str, *, limits: Limits = DEFAULTS) -> float:
    """The share of a prompt's tests that a response passes, in [0, 1]; see `programs`, `passed`."""
    code, tests = programs(checks, response)
    return passed(code, tests, limits=limits)


def shares(
    checks: Sequence[Mapping[str, Any]],
    responses: Sequence[str],
    *,
    workers: int | None = None,
    limits: Limits = DEFAULTS,
) -> list[float]:
    """`share` of several responses, each with its checks, in their order.

    Args:
        workers: sandboxes at a time; None for as many as there are processors. Limits of time are of
            each sandbox, so more workers than free processors can cost slow code its pass.
    """
    workers = whole("workers", (os.cpu_count() or 1) if workers is None else workers, least=1)
    if len(checks) != len(responses):
        raise ValueError(f"{len(checks)} checks for {len(responses)} responses; give one for each")
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda c, r: share(c, r, limits=limits), checks, responses))


def _run(job: bytes, folder: str, timeout: float) -> tuple[bytes, bytes]:
    """stdout and stderr of the jail, whose whole process group is dead afterwards."""
    process = subprocess.Popen(
        _PYTHON,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    try:
        return process.communicate(job, timeout)
    except subprocess.TimeoutExpired:
        return b"", f"nothing in {timeout:g} s".encode()
    finally:
        with suppress(ProcessLookupError, PermissionError):  # no such group: nothing is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _numpy_folder() -> list[str]:
    """Where numpy is, which the tests of MBPP+ import, and whatever is installed beside it."""
    found = find_spec("numpy")
    return [str(Path(found.origin).parents[1])] if found and found.origin else []


def _text(checks: Mapping[str, Any], name: str) -> str:
    value = checks.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}; it must be text")
    return value or ""


def _texts(checks: Mapping[str, Any], name: str) -> list[str]:
    value = checks.get(name)
    if value is None:
        return []
    if isinstance(value, str) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} is {value!r}; it must be a list of texts")
    return list(value)
