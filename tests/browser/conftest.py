"""A real Chromium, a JupyterLab on a copy of the checkout, and the site on this machine.

`make test-browser` runs these tests; without Playwright or a browser they are skipped. Screenshots
go to outputs/browser/, for the eyes of whoever changed a page.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
COPIED = ("aisp", "data", "figures", "notebooks", "Makefile", "pyproject.toml")


@pytest.fixture(scope="session")
def browser():
    """Chromium of the distribution, else the one that `playwright install chromium` fetched."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync.sync_playwright() as playwright:
        program = found or playwright.chromium.executable_path
        if not Path(program).exists():
            pytest.skip(
                f"no browser: none of {', '.join(NAMES)}, and `playwright install` was not run"
            )
        # A folder of its own for its profile is made by Playwright, and removed at the end.
        launched = playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=60_000)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser):
    """Opens pages; closes them after the test. What a page logged as an error is in page.faults."""
    contexts = []

    def opened(width: int = 1280, height: int = 900, scheme: str = "light"):
        size = {"width": width, "height": height}
        contexts.append(
            browser.new_context(viewport=size, color_scheme=scheme, is_mobile=width < 500)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(f"script: {error}"))
        page.on(
            "console",
            lambda said: said.type == "error" and page.faults.append(f"console: {said.text}"),
        )
        page.on("requestfailed", lambda asked: page.faults.append(f"not loaded: {asked.url}"))
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def shot():
    """Keeps a picture of a page, or of a part of it, under a name."""
    folder = ROOT / "outputs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)

    def shot(part, name: str, **options) -> None:
        part.screenshot(path=str(folder / f"{name}.png"), timeout=60_000, **options)

    return shot


# -- the site -------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="session")
def site(browser) -> Iterator[str]:
    """Address of the site that `make docs` built; it is built first where there is none."""
    folder = ROOT / "outputs" / "site"
    if not (folder / "index.html").exists():
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", "notebooks/site"]
        command += ["-d", "outputs/doctrees", ".", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


# -- JupyterLab -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def checkout(browser, tmp_path_factory) -> Path:
    """A copy of what notebooks need, so that running them leaves the checkout as it is."""
    folder = tmp_path_factory.mktemp("lab") / "checkout"
    folder.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*smoke")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def command_of_make_lab(flags: str) -> list[str]:
    """The last command of `make lab`, with this Python: `make` itself would install first."""
    shown = subprocess.run(
        ["make", "-n", "lab", "VENV=nowhere", f"LAB_FLAGS={flags}"],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}},
        capture_output=True,
        text=True,
        check=True,
    )
    python, *rest = shlex.split(shown.stdout.splitlines()[-1])
    assert python == "nowhere/bin/python" and rest[:2] == ["-m", "jupyterlab"]
    return [sys.executable, *rest]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def lab(checkout, tmp_path_factory) -> Iterator[str]:
    """Address of a JupyterLab on the copy, with settings of its own; {} stands for the notebook."""
    home, port, token = tmp_path_factory.mktemp("jupyter"), free_port(), "of-this-test"
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Every cell stays in the page, also those that are scrolled away.
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (home / "labconfig").mkdir()
    (home / "labconfig" / "page_config.json").write_text(json.dumps(news))
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(checkout)}
    env |= {"JUPYTER_CONFIG_DIR": str(home), "IPYTHONDIR": str(home / "ipython")}
    env |= {f"JUPYTER_{x}_DIR": str(home / x.lower()) for x in ("DATA", "RUNTIME")}
    env |= {f"JUPYTERLAB_{x}_DIR": str(home / x.lower()) for x in ("SETTINGS", "WORKSPACES")}
    env.pop("MPLBACKEND", None)  # of these tests; notebooks draw inline
    flags = f"--no-browser --ip=127.0.0.1 --port={port} --port-retries=0"
    flags += f" --IdentityProvider.token={token}"
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags += " --allow-root"  # as in a container
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            command_of_make_lab(flags), cwd=checkout, env=env, stdout=log, stderr=log
        )
    try:
        until_it_answers(f"http://127.0.0.1:{port}/api?token={token}", server, home / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"  # no tabs of another test
    finally:
        stop(server)


def until_it_answers(address: str, server: subprocess.Popen, log: Path, seconds: int = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-3000:]}")


def stop(server: subprocess.Popen) -> None:
    """The server, which ends its kernels, and whatever of them is left."""
    import psutil

    try:
        kernels = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        kernels = []
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(10)
    _, left = psutil.wait_procs(kernels, timeout=10)
    for process in left:
        process.kill()
