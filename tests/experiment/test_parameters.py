"""What notebooks and files of parameters may set, and what ends a run instead."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aisp.experiment import parameters

ROOT = Path(__file__).resolve().parents[2]
DECLARED = """\
profile: str = "smoke"  # how much is computed
seed: int = 0  # of the draws
kappa: int or None = None  # iterations
lam: float = 1.0  # temperature
kl_limit: float or None = 0.1  # nats
methods: str or list or None = None  # which run
quick: bool = True  # or not
"""


def injected(text: str) -> str:
    """The cell that papermill adds for a YAML file with this text."""
    from papermill.translators import PythonTranslator

    return PythonTranslator.codify(yaml.safe_load(text) or {})


def after(text: str) -> list[str]:
    return ["", DECLARED, injected(text), "import aisp\nparameters.check()"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed: 3",
        "kappa: 2\nlam: 1",
        "kl_limit: null\nquick: false",
        "methods: aisp,ram",
        "methods: [aisp, ram]",
        "lam: 1.0e-3",
    ],
)
def test_known_names_with_values_of_their_types_pass(text, tmp_path):
    parameters.check_cells(after(text))
    (tmp_path / "p.yaml").write_text(text)
    values = parameters.read(tmp_path / "p.yaml", notebook(tmp_path))
    assert values == {
        "profile": "smoke",
        "seed": 0,
        "kappa": None,
        "lam": 1.0,
        "kl_limit": 0.1,
        "methods": None,
        "quick": True,
    } | (yaml.safe_load(text) or {})


@pytest.mark.parametrize(
    "text, said",
    [
        ("kapa: 2", "kapa (given 2) is no parameter of ... ; did you mean kappa?\n"),
        ("Seed: 2", "Seed (given 2) ... ; did you mean seed?\n"),
        ("open: 2", "open (given 2) is no parameter of ... \n"),  # a name that Python has anyway
        ("seed: '0'", "seed is '0'; it must be a whole number. ... write 0 without quotes"),
        ("seed: 1.5", "seed is 1.5; it must be a whole number"),
        ("seed: 0.0", "seed is 0.0; it must be a whole number"),
        ("seed: null", "seed is None; it must be a whole number"),
        ("seed: false", "seed is False; it must be a whole number"),
        ("kappa: true", "kappa is True; it must be a whole number or None"),
        ("lam: 1e-3", "lam is '1e-3'; it must be a finite number. ... write 0.001 without quotes"),
        ("lam: 1e-7", "lam is '1e-7' ... write 1.0e-07 without quotes"),
        ("lam: .nan", "lam is ... nan ... ; it must be a finite number"),
        ("lam: -.inf", "lam is ... inf ... ; it must be a finite number"),
        ("lam: true", "lam is True; it must be a finite number"),
        ("lam: high", "lam is 'high'; it must be a finite number"),
        ("lam: null", "lam is None; it must be a finite number"),
        ("quick: 'false'", "quick is 'false'; it must be True or False"),
        ("quick: 0", "quick is 0; it must be True or False"),
        ("profile: [cpu]", "profile is ['cpu']; it must be text"),
        ("profile: 5", "profile is 5; it must be text. Put it in quotes"),
        ("methods: [a, 3]", "methods is ['a', 3]; it must be text or a list of texts or None"),
        ("methods: {a: 3}", "methods is {'a': 3}; it must be text or a list of texts or None"),
    ],
)
def test_what_ends_a_run_with_which_words(text, said, tmp_path):
    with pytest.raises(ValueError) as of_cells:
        parameters.check_cells(after(text))
    params = tmp_path / "my file.yaml"
    params.write_text(text)
    with pytest.raises(ValueError) as of_file:
        parameters.read(params, notebook(tmp_path))
    assert str(of_file.value).startswith(f"{params}: ")
    for message in (str(of_cells.value), str(of_file.value)):
        for part in said.split(" ... "):
            assert part in message, message


def test_numbers_are_written_in_the_way_that_yaml_reads():
    for text in ("1e-3", "1e-7", "1e22", "-2E5", "0.5", "7"):
        hint = parameters._hint(text, ["int", "float"])
        advised = hint.split("write ")[1].split(" without")[0]
        assert yaml.safe_load(advised) == float(text), advised


def test_one_parameter_may_hold_keyword_arguments():
    expected = {"max_model_len": 2048, "gpu_memory_utilization": 0.4, "quantization": "fp8"}
    written = ["max_model_len=2048", "gpu_memory_utilization = 0.4", "quantization=fp8"]
    assert parameters.pairs("x", written) == parameters.pairs("x", ", ".join(written)) == expected
    assert parameters.pairs("x", None) == parameters.pairs("x", "") == {}
    assert parameters.pairs("x", "enforce_eager=True") == {"enforce_eager": True}
    for wrong in ("max_model_len", "=3", "a b=3", "a="):
        with pytest.raises(ValueError, match=r"x has .*write name=value"):
            parameters.pairs("x", wrong)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError) as error:
        parameters.check_cells(after("kapa: 2\nseed: '1'\nlamb: 2"))
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines] == ["kapa", "lamb", "seed", "The"]
    assert lines[-1].endswith("profile, seed, kappa, lam, kl_limit, methods, quick.")


def test_a_cell_that_is_run_again_sees_what_it_saw_before():
    later = ["value = load_value('x')\nkapa = 3", "seed = None", "%timeit 1", "x: Path = Path()"]
    cells = after("kappa: 2")
    parameters.check_cells([*cells, *later, cells[-1]])
    # A wrong cell of papermill's that was corrected, or left out after the declarations ran again.
    wrong = injected("kapa: 2")
    with pytest.raises(ValueError, match="kapa"):
        parameters.check_cells([*cells, wrong, cells[-1]])
    parameters.check_cells([*cells, wrong, cells[2], cells[-1]])
    parameters.check_cells([*cells, wrong, DECLARED, cells[-1]])


def test_stored_values_that_a_reader_edits_are_checked_too():
    with pytest.raises(ValueError, match="seed is '0'"):
        parameters.check_cells([DECLARED.replace("= 0 ", "= '0' "), "parameters.check()"])


@pytest.mark.parametrize("line", ["kapa = 2", "kapa: Path = 2", "kapa: int = 1 + f()", "kapa: int"])
def test_a_line_of_another_form_in_the_parameters_cell_is_an_error(line, tmp_path):
    with pytest.raises(ValueError, match="name: type = value"):
        parameters.check_cells([DECLARED + line, "parameters.check()"])
    path = notebook(tmp_path, DECLARED + line)
    with pytest.raises(ValueError, match=r"n\.ipynb has no cell.*name: type = value"):
        parameters.of_notebook(path)


def test_where_no_history_is_kept_nothing_is_checked():
    parameters.check_cells([])
    parameters.check_cells([""])  # as nbval executes cells
    parameters.check()  # as a script or a test does


@pytest.mark.parametrize(
    "content, said",
    [
        ("- seed\n- 3\n", "holds a list; a file of parameters has lines `name: value`"),
        ("seed\n", "holds a str"),
        ("a: [1\n", "cannot be read as YAML"),
        (b"name: \xff\n", "cannot be read as YAML"),
        ("1: 2\n", r"1 \(given 2\) is no parameter of n"),
    ],
)
def test_files_that_hold_no_parameters_are_refused_by_name(content, said, tmp_path):
    params = tmp_path / "p.yaml"
    params.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said) as error:
        parameters.read(params, notebook(tmp_path))
    assert str(params) in str(error.value)


def test_main_results_names_the_file_and_ends(tmp_path):
    params = tmp_path / "my file.yaml"
    params.write_text("profile: cpu\nkapa: 2\n")
    command = [sys.executable, "-m", "aisp.experiment.studies.main_results", str(params)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {params}: kapa (given 2) is no parameter of 06_main_res")
    assert "did you mean kappa?" in done.stderr and "Traceback" not in done.stderr


def test_papermill_ends_at_the_cell_that_checks(tmp_path):
    """On a real kernel. That known names run to the end, every notebook shows."""
    path = notebook(tmp_path, DECLARED, "print('went on')")
    command = [sys.executable, "-m", "papermill", str(path), str(tmp_path / "out.ipynb")]
    command += ["-k", "python3", "--log-output", "-p", "kapa", "2"]
    env = {k: v for k, v in os.environ.items() if k != "JUPYTER_PATH"}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "kapa (given 2) is no parameter of this notebook; did you mean kappa?" in done.stderr
    assert "went on\n" not in done.stdout + done.stderr


def notebook(folder: Path, declared: str = DECLARED, then: str = "") -> Path:
    path = folder / "n.ipynb"
    check = "from aisp.experiment import parameters\nparameters.check()"
    cells = [
        {"cell_type": "code", "execution_count": None, "outputs": [], "id": f"c{number}"}
        | {"metadata": {"tags": ["parameters"] if number == 0 else []}, "source": source}
        for number, source in enumerate([declared, check, then])
    ]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
