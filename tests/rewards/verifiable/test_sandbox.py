"""The sandbox: what passes, what fails, what cannot get out, and what cannot be forged.

Everything runs in both sandboxes: walled by namespaces, and the weaker one of an audit hook.
"""

import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from aisp.rewards.verifiable import sandbox
from aisp.rewards.verifiable.sandbox import Limits, extract, passed, programs, share, shares

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no sandbox on Windows")

WALLED = Limits(wall_seconds=3, cpu_seconds=2, memory_bytes=256 * 2**20, file_bytes=2**16)
HOOKED = replace(WALLED, namespaces=False)
# A warden that is process 1 has its namespaces.
NAMESPACES = sys.platform == "linux" and passed("import os", "assert os.getppid() == 1") == 1
needs_namespaces = pytest.mark.skipif(not NAMESPACES, reason="the kernel refuses namespaces here")

# Six problems of our own: entry point, right code, wrong code, tests.
PROBLEMS = [
    (
        "double",
        "def double(x):\n    return 2 * x",
        "def double(x):\n    return x * x",
        ["assert double(2) == 4", "assert double(5) == 10", "assert double(-1) == -2"],
    ),
    (
        "vowels",
        "def vowels(text):\n    return sum(c in 'aeiou' for c in text.lower())",
        "def vowels(text):\n    return sum(c in 'aeiou' for c in text)",
        ["assert vowels('hat') == 1", "assert vowels('OAK') == 2"],
    ),
    (
        "runs",
        "from itertools import groupby\n\ndef runs(xs):\n"
        "    return [(x, len(list(g))) for x, g in groupby(xs)]",
        "def runs(xs):\n    return [(x, xs.count(x)) for x in sorted(set(xs))]",
        ["assert runs([]) == []", "assert runs([2, 2, 1, 2]) == [(2, 2), (1, 1), (2, 1)]"],
    ),
    (
        "mean",
        "def mean(xs):\n    return sum(xs) / len(xs) if xs else 0.0",
        "def mean(xs):\n    return sum(xs) / len(xs)",
        ["assert mean([]) == 0", "assert abs(mean([0.1, 0.2]) - 0.15) < 1e-9"],
    ),
    (
        "count_down",
        "def count_down(n):\n    return [n, *count_down(n - 1)] if n else [0]",
        "def count_down(n):\n    return [n, *count_down(n - 1)]",
        ["assert count_down(3) == [3, 2, 1, 0]"],
    ),
    (
        "initials",
        "def initials(name):\n    return {w: w[0].upper() for w in name.split()}",
        "def initials(name):\n    return {name: name[0]}",
        ["assert initials('ada') == {'ada': 'A'}", "assert initials('') == {}"],
    ),
]
WRONG = "def double(x):\n    return 7\n"
DOUBLE = ["assert double(2) == 4", "assert abs(double(5) - 10) < 1e-6"]


@pytest.fixture(params=[pytest.param(WALLED, id="walled"), pytest.param(HOOKED, id="hooked")])
def limits(request):
    return request.param


def mbpp(tests):
    return {"test_list": tests}


def human_eval(entry, tests):
    body = "\n".join("    " + test.replace(f"{entry}(", "candidate(") for test in tests)
    return {"entry_point": entry, "test": f"def check(candidate):\n{body}\n"}


@pytest.mark.parametrize(
    "entry, right, wrong, tests", PROBLEMS, ids=[entry for entry, *_ in PROBLEMS]
)
def test_problems(entry, right, wrong, tests):
    answers = [f"Here it is:\n```python\n{code}\n```\nAsk me more." for code in (right, wrong)]
    for checks in (mbpp(tests), human_eval(entry, tests)):
        good, bad = shares([checks, checks], answers, limits=WALLED)
        assert good == 1 > bad


def test_the_share_is_of_tests_that_pass(limits):
    right = "def double(x):\n    return 2 * x"
    assert passed(right, [*DOUBLE, "assert double(1) == 3", "1 / 0"], limits=limits) == 0.5
    assert passed(right, DOUBLE[0], limits=limits) == 1
    assert passed(WRONG, DOUBLE, limits=limits) == 0


def test_each_test_has_a_fresh_process(limits):
    code = "seen = []\ndef once():\n    seen.append(1)\n    return len(seen)"
    assert passed(code, ["assert once() == 1"] * 2, limits=limits) == 1


BROKEN = [
    "def double(x) return",
    "import no_such_module\ndef double(x):\n    return 2 * x",
    "",
    "def double(x):\n    return double(x)",
    "import sys\nsys.setrecursionlimit(10**9)\ndef double(x):\n    return double(x)",
    "raise KeyboardInterrupt",
    "\0",
    "def double(x):\n    return '\ud800'",
    "def double(x):\n    return input()",
    "import ctypes\ndef double(x):\n    ctypes.string_at(0)",
]


def test_broken_code_fails_and_is_no_error(limits):
    tight = replace(limits, wall_seconds=1)
    results = shares([mbpp(DOUBLE[:1])] * len(BROKEN), BROKEN, limits=tight)
    assert dict(zip(BROKEN, results, strict=True)) == dict.fromkeys(BROKEN, 0)


FORGERIES = [
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "import os\ndef double(x):\n    os._exit(0)",
    "def double(x):\n    raise SystemExit(0)",
    "print(1)\nprint(2)",
    "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'2')\n    except OSError: pass",
    "import atexit, os\natexit.register(os._exit, 0)",
    "import threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()",
    "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.AssertionError = None",
    "import os\nos._exit = os.write = lambda *a: None",
    "class Yes:\n    def __eq__(self, other): return True\ndef double(x): return Yes()",
    "class Yes(int):\n    def __sub__(self, o): return 0\n    def __eq__(self, o): return True\n"
    "def double(x): return Yes(x)",
    "class Yes:\n    __eq__ = lambda self, other: True\ndef double(x): return [Yes()]",
    "import sys\nsys.modules['__main__'].holds = lambda *a: True",
    "import sys\nsys.excepthook = lambda *a: None",
]


def test_cheap_forgeries_fail(limits):
    tests = [*DOUBLE, "assert [double(3)] == [6]", "assert [7] == [double(8)] == 1"]
    codes = [WRONG + forgery for forgery in FORGERIES]
    assert dict(
        zip(codes, shares([mbpp(tests)] * len(codes), codes, limits=limits), strict=True)
    ) == (dict.fromkeys(codes, 0))


def test_forgeries_of_check_fail(limits):
    forgeries = ["def check(candidate): pass", FORGERIES[10], FORGERIES[2]]
    checks = [human_eval("double", DOUBLE)] * len(forgeries)
    assert shares(checks, [WRONG + f for f in forgeries], limits=limits) == [0] * len(forgeries)


def test_what_lies_about_says_nothing(limits):
    """The token is in no place that code would print by accident."""
    spy = (
        "import os, sys, __main__\n"
        "text = repr([globals(), vars(__main__), dict(os.environ), sys.argv, os.listdir('.')])\n"
        "for fd in range(64):\n"
        "    try: os.write(fd, text.encode())\n"
        "    except OSError: pass\n"
        "found = text + open('/proc/self/cmdline').read()\n"
    )
    if sys.platform != "linux":
        spy = spy.replace(" + open('/proc/self/cmdline').read()", "")
    assert passed(WRONG + spy, DOUBLE, limits=limits) == 0
    quiet = spy.replace("os.write(fd", "len((fd")  # nothing written: only the tests count
    tests = ["assert 'nee' + 'dle' not in found  # needle", "assert 'token' not in found"]
    assert passed(quiet.replace("len((fd, text.encode())", "pass"), tests, limits=limits) == 1


def test_comparisons_of_other_classes_are_trusted(limits):
    code = (
        "from collections import Counter\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pair:\n    a: int\n    b: int\n"
        "def swap(p):\n    return Pair(p.b, p.a)\n"
        "def count(xs):\n    return Counter(xs)\n"
    )
    tests = ["assert swap(Pair(1, 2)) == Pair(2, 1)", "assert count('aab') == {'a': 2, 'b': 1}"]
    assert passed(code, tests, limits=limits) == 1


def test_numpy_is_there_for_the_tests(limits):
    wide = replace(limits, memory_bytes=2**30, wall_seconds=20, cpu_seconds=10)
    test = "import numpy as np\nassert np.allclose(double(np.ones(3)), 2)"
    assert passed("def double(x):\n    return 2 * x", test, limits=wide) == 1


def test_the_environment_is_empty(limits, monkeypatch):
    monkeypatch.setenv("A_SECRET_OF_THE_CALLER", "1")
    test = "assert not [k for k in os.environ if 'SECRET' in k or k in ('HOME', 'PATH', 'USER')]"
    assert passed("import os", test, limits=limits) == 1


def test_descriptors_of_the_caller_are_closed(limits, tmp_path):
    with open(tmp_path / "caller", "w") as file:
        os.set_inheritable(file.fileno(), True)
        code = (
            "import os\nn = 0\nfor fd in range(3, 1000):\n"
            "    try:\n        os.fstat(fd)\n        n += 1\n    except OSError: pass\n"
        )
        assert passed(code, "assert n == 1", limits=limits) == 1  # the one for its token


def test_files_inside_and_outside(limits, tmp_path):
    write = "def double(x):\n    open({!r}, 'w').write('x')\n    return 2 * x"
    outside = tmp_path / "out"
    tmp_path.chmod(0o777)
    assert passed(write.format(str(outside)), DOUBLE[0], limits=limits) == 0
    assert not outside.exists()
    kept = tmp_path / "kept"
    kept.write_text("x")
    kept.chmod(0o666)
    for remove in (f"import os\nos.remove({str(kept)!r})", f"open({str(kept)!r}, 'w')"):
        assert passed(remove, "pass", limits=limits) == 0
        assert kept.read_text() == "x"
    inside = write.format("in") + "\n\ndef back():\n    double(1)\n    return open('in').read()"
    assert passed(inside, "assert back() == 'x'", limits=limits) == 1


def test_a_link_leads_nowhere(tmp_path):
    tmp_path.chmod(0o777)
    code = f"import os\nos.symlink({str(tmp_path)!r}, 'l')\nopen('l/out', 'w')"
    assert passed(code, "pass", limits=WALLED) == passed(code, "pass", limits=HOOKED) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "hog, modest",
    [
        ("x = bytearray(2**31)", "x = bytearray(2**20)"),
        ("x = 'ab' * 10**12", "x = 'ab' * 10**3"),
        ("f = open('f', 'wb')\nf.write(bytes(10**8))\nf.close()", "open('f', 'wb').write(b'a')"),
        ("x = [open('/dev/null') for _ in range(500)]", "x = [open('/dev/null')]"),
        ("while True: print('x' * 10**6)", "for _ in range(50): print('x' * 10**6)"),
    ],
    ids=["memory", "one-object", "file", "descriptors", "output"],
)
def test_too_much_fails_and_a_little_passes(hog, modest, limits):
    assert passed(hog, "pass", limits=replace(limits, wall_seconds=1)) == 0
    assert passed(modest, "pass", limits=limits) == 1


@needs_namespaces
def test_many_files_together():
    code = "for i in range(400):\n    with open(str(i), 'wb') as f: f.write(bytes(60000))"
    assert passed(code, "pass", limits=WALLED) == 0


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "import re\nre.match('(a+)+$', 'a' * 50 + 'b')",
    ],
)
def test_endless_code_ends(code, limits):
    start = time.monotonic()
    tight = replace(limits, wall_seconds=1)
    assert passed(code, "pass", limits=tight) == 0
    assert time.monotonic() - start < 15


def test_computation_ends_by_its_own_limit():
    start = time.monotonic()
    patient = replace(WALLED, wall_seconds=60, cpu_seconds=1)
    assert passed("while True: pass", "pass", limits=patient) == 0
    assert time.monotonic() - start < 30


def test_network(limits):
    """Nobody arrives at a port of this machine, where the caller itself does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.setblocking(False)
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert passed(code, "pass", limits=limits) == 0
        with pytest.raises(BlockingIOError):
            server.accept()
        with socket.create_connection(("127.0.0.1", port)):
            server.settimeout(5)
            server.accept()[0].close()


def named(name):
    """The processes of this machine that have given themselves a name."""
    found = []
    for file in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            found += [file] if file.read_text().strip() == name else []
    return found


def orphan(name):
    """Code that leaves a process behind, in a session of its own and under a name."""
    return (
        f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(1000)\n"
        "    os._exit(0)\n"
    )


@needs_namespaces
def test_nothing_is_left_running():
    name = f"orphan{os.getpid()}"
    assert passed(orphan(name), "pass", limits=WALLED) == 1
    assert not named(name)
    waits = replace(WALLED, wall_seconds=2)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(passed, orphan(name) + "time.sleep(1000)", "pass", limits=waits)
        seen = 0
        while not result.done():
            seen = max(seen, len(named(name)))
            time.sleep(0.05)
    assert seen >= 1 and result.result() == 0  # it did run
    assert not named(name)


@needs_namespaces
def test_processes_are_counted():
    code = (
        "import os, time\nn = 0\n"
        "try:\n    while n < 200:\n        if os.fork() == 0:\n            time.sleep(9)\n"
        "            os._exit(0)\n        n += 1\nexcept OSError: pass"
    )
    assert passed(code, "assert n == 7", limits=WALLED) == 1  # with itself, 8
    roomy = replace(WALLED, memory_bytes=4 * 2**30)  # each thread's stack and heap
    threads = code.replace(
        "if os.fork() == 0:\n            time.sleep(9)\n            os._exit(0)",
        "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    )
    threads = "import threading\n" + threads.replace("OSError", "RuntimeError")
    assert passed(threads, "assert n == 7", limits=roomy) == 1


@needs_namespaces
def test_a_fork_bomb():
    name = f"bomb{os.getpid()}"
    code = (
        f"import ctypes, os\nctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\n"
        "while True:\n    try: os.fork()\n    except OSError: pass"
    )
    assert passed(code, "pass", limits=replace(WALLED, wall_seconds=1)) == 0
    assert not named(name)


@needs_namespaces
def test_other_processes_are_out_of_sight():
    me = os.getpid()
    assert passed("import os", f"os.kill({me}, 0)", limits=WALLED) == 0
    tests = [f"assert not os.path.exists('/proc/{me}/environ')", "assert os.getppid() == 1"]
    assert passed("import os", tests, limits=WALLED) == 1


@pytest.mark.parametrize("how", ["os.fork()", "os.system('true')", "subprocess.run(['true'])"])
def test_the_hook_refuses_processes(how):
    assert passed("import os, subprocess", how, limits=HOOKED) == 0


def test_the_caller_is_as_before(tmp_path, monkeypatch, limits):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    there, umask = os.getcwd(), os.umask(0o022)
    codes = ["open('f', 'w').write('x')", "while True: pass", "import os\nos.mkdir('d')", "x = 1"]
    tight = replace(limits, wall_seconds=1)
    before = len(os.listdir("/dev/fd"))
    for code in codes:
        passed(code, "pass", limits=tight)
    assert len(os.listdir("/dev/fd")) == before
    assert os.getcwd() == there and os.umask(umask) == 0o022
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "response, code",
    [
        ("x = 1", "x = 1"),
        ("Text\n```python\na\n```\nmore\n```python\nb\n```", "a\n"),
        ("```\nplain\n```", "plain\n"),
        ("```bash\nls\n```\n```Python3 title=x\na\n```", "a\n"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```py\ncut = 1", "cut = 1"),
        ("1. Do\n   ```python\n   x = 1\n   ```", "   x = 1\n   "),
        ("```\nfirst\n```\n```python\nsecond\n```", "second\n"),
        ("", ""),
    ],
)
def test_extract(response, code):
    assert extract(response).rstrip(" ") == code.rstrip(" ")


def test_a_human_eval_response_may_be_a_body():
    prompt = 'from typing import List\n\ndef total(xs: List[int]) -> int:\n    """Sum."""\n'
    checks = {**human_eval("total", ["assert total([1, 2]) == 3"]), "prompt": prompt}
    whole = "```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```"
    body = "    return sum(xs)\n"
    wrong = "    return len(xs)\n"
    assert shares([checks] * 3, [whole, body, wrong], limits=WALLED) == [1, 1, 0]


def test_columns_of_mbpp():
    checks = {"test_imports": ["import math"], "test_list": ["assert math.floor(f()) == 1"]}
    assert share(checks, "def f():\n    return 1.5", limits=WALLED) == 1
    setup = {"test_setup_code": "one = 1", "test_list": ["assert f() == one", "assert f() == 2"]}
    assert share(setup, "def f():\n    return 1", limits=WALLED) == 0.5
    plus = {**setup, "test": "for x in [1, 2]:\n    assert f() == 1"}
    assert programs(plus, "x")[1] == ["one = 1\nfor x in [1, 2]:\n    assert f() == 1"]


@pytest.mark.parametrize(
    "checks, error",
    [
        ({}, "needs `test`"),
        ({"test_list": []}, "needs `test`"),
        ({"test_list": "assert f()"}, "must be a list of texts"),
        ({"test": 3}, "test is 3; it must be text"),
        ({"test": "pass", "entry_point": "os.system('x')"}, "name of a function"),
    ],
)
def test_bad_checks(checks, error):
    with pytest.raises(ValueError, match=error):
        share(checks, "x = 1")


@pytest.mark.parametrize(
    "field, value",
    [("wall_seconds", 0), ("cpu_seconds", 1.5), ("memory_bytes", 10), ("namespaces", 1)],
)
def test_bad_limits(field, value):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


def test_bad_calls(monkeypatch):
    with pytest.raises(ValueError, match="list of tests is empty"):
        passed("x = 1", [])
    with pytest.raises(ValueError, match="1 checks for 2 responses"):
        shares([{}], ["a", "b"])
    with pytest.raises(ValueError, match="workers"):
        shares([], [], workers=0)
    monkeypatch.setattr(sandbox.sys, "platform", "win32")
    with pytest.raises(RuntimeError, match="Windows"):
        passed("x = 1", "pass")


def test_a_sandbox_that_does_not_work_is_an_error(monkeypatch):
    monkeypatch.setattr(sandbox, "_PYTHON", (sys.executable, "-c", "raise OSError('no jail')"))
    with pytest.raises(RuntimeError, match=r"(?s)gave no answer.*no jail"):
        passed("x = 1", "pass")


def test_several_at_once_are_as_one_after_the_other():
    tests = [f"assert f({i}) < 3" for i in range(4)]
    codes = [f"def f(x):\n    return x + {i}" for i in range(5)]
    checks = [mbpp(tests)] * 5
    assert shares(checks, codes, workers=3) == shares(checks, codes, workers=1)
    assert shares(checks, codes) == [0.75, 0.5, 0.25, 0, 0]


@pytest.mark.slow
def test_the_order_of_sets_and_random_numbers_is_the_same_each_time():
    code = "import random\nx = [list({'a', 'b', 'c', 'd'}), random.random()]"
    test = "assert x[0][0] == 'a' and x[1] < 0.9"
    assert len({passed(code, test, limits=WALLED) for _ in range(30)}) == 1
