"""The command ``convoy``: help with examples, what is allowed, old spellings, nothing heavy before the work."""

import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from convoy import spellings
from convoy.errors import BusyError
from flows import cli

COMMANDS = [name for name in cli.app.resolved_commands() if not name.startswith("-")]
HEAVY = {"dask", "dvc", "keras", "mlflow", "numpy", "optuna", "pandas", "prefect", "pyarrow", "pydantic", "tensorflow"}


def run(*words, **options):
    """Runs ``python -m WORDS`` as a process; returns its status, and what it printed to both."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, **options
    )
    return done.returncode, done.stdout, done.stderr


def test_the_top_help_has_every_command_in_a_group(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    first, second = capsys.readouterr().out.split("Usage: convoy COMMAND")[1:]
    assert first == second
    for name in COMMANDS:
        assert f"│ {name} " in first
    for group in ("Pipeline", "Models", "Registry", "Data", "Machine"):
        assert f"─ {group} ─" in first
    assert "─ Commands ─" not in first


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_with_an_example(name, capsys):
    assert cli.main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Usage: convoy {name}")
    assert f"  convoy {name}" in said.partition("Example")[2]


def examples(name):
    """Returns the words of each example of a command, without ``convoy``."""
    lines = cli.app[name].help_epilogue.splitlines()[1:]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_can_be_typed(name):
    for words in examples(name):
        assert cli.app.parse_args(words, print_error=False, exit_on_error=False)[0].__name__ == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pln", 'Unknown command "pln". Did you mean "plan"? Commands: run, plan, show, check'),
        ("--slots 2", 'Unknown command "--slots"'),
        ("run --slot 2", "Unknown option: --slot. Did you mean --slots? Usage: convoy run [TARGET ...] [--slots N]"),
        ("run --slots two", 'Invalid value for --slots: unable to convert "two" into int. Usage: convoy run'),
        ("run --slots", "convoy run lacks"),
        ("check all", "convoy check takes no all. Usage: convoy check"),
        ("tune", "convoy tune lacks MODEL. Usage: convoy tune MODEL [--trials N] [--minutes M] [--slots N]"),
        ("predict digits in", "convoy predict lacks OUTPUT. Usage: convoy predict DATASET INPUT OUTPUT"),
        ("rollback digits@2", "convoy rollback lacks --reason. Usage: convoy rollback DATASET@VERSION --reason TEXT"),
        ("rollback digits --reason x", "'digits' names no version. Allowed: digits@3."),
        ("clean", "convoy clean lacks --keep-last. Usage: convoy clean --keep-last N [--keep-champions] [--dry-run]"),
        ("clean --keep-last -1", "--keep-last -1: allowed is 0 or more."),
    ],
)
def test_a_wrong_command_line_is_one_line_that_lists_what_is_allowed(words, message, capsys):
    assert cli.main(words.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pipeline train@resnet --slots 2", "run train@resnet --slots 2"),
        ("results --since 5", "show --since 5"),
        ("predict --dataset digits in out.csv", "predict digits in out.csv"),
        ("predict in out.csv --dataset=digits", "predict digits in out.csv"),
        ("serve --port 8000 --dataset digits", "serve digits --port 8000"),
        ("rollback digits --to 2 --reason wrong on 7", "rollback digits@2 --reason 'wrong on 7'"),
        ("clean --keep champion,last:3 --dry-run", "clean --keep-last 3 --keep-champions --dry-run"),
        ("clean --keep last:1", "clean --keep-last 1"),
        ("clean --keep champion", "clean --keep-last 0 --keep-champions"),
    ],
)
def test_an_old_spelling_answers_with_the_new_one(old, new, monkeypatch, capsys):
    typed = []
    monkeypatch.setattr(cli, "_do", lambda words: typed.append(words) or 0)
    assert cli.main(old.split()) == 0
    assert capsys.readouterr().err == f'note: this is "convoy {new}" now\n'
    assert cli.main(typed[0]) == 0
    assert typed[0] == typed[1]
    assert capsys.readouterr().err == ""  # the new one needs no note


@pytest.mark.parametrize(
    "words", ["predict digits in out.csv", "rollback a@1 --reason --to", "clean --keep all", "run"]
)
def test_what_is_no_old_spelling_stays(words):
    assert spellings.renew(words.split()) == words.split()


def test_a_command_of_stages_goes_on_as_convoy(workspace):
    status, _, said = run("-m", "stages", "rollback", "digits", "--to", "2", cwd=workspace)
    note, error = said.splitlines()
    assert note == 'note: this is "convoy rollback digits@2" now'
    assert error.startswith("error: convoy rollback lacks --reason.")
    assert status == 2


def test_stages_knows_what_was_typed_there():
    assert set(spellings.OF_STAGES) < set(COMMANDS)


def test_help_imports_nothing_heavy_and_takes_little_time():
    code = "import sys\nfrom flows import cli\ncli.main([])\nprint(*{name.partition('.')[0] for name in sys.modules})"
    status, said, _ = run("-c", code)
    assert status == 0
    assert not HEAVY & set(said.splitlines()[-1].split())
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run("-m", "flows", "--help")
    # Generous: 0.2 s where nothing else runs.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.6


def test_the_version_is_that_of_the_project(capsys):
    assert cli.main(["--version"]) == 0
    assert f'version = "{capsys.readouterr().out.split()[1]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_libraries_are_checked_before_the_work_and_not_for_help(name, monkeypatch):
    def check():
        raise BusyError("checked")

    monkeypatch.setattr("convoy.doctor.check_libraries", check)
    monkeypatch.setattr("convoy.doctor.doctor", lambda: None)
    assert cli.main([name, "--help"]) == 0
    # doctor itself says more of them
    assert cli.main(examples(name)[0]) == (0 if name == "doctor" else BusyError.status)


def test_names_of_params_yaml_are_completed(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(["__complete", "tune", ""]) == 0
    assert "lenet5" in capsys.readouterr().out
    assert cli.main(["__complete", "run", "train@re"]) == 0
    assert "train@resnet\n" in capsys.readouterr().out


def test_completion_is_installed_for_the_shell_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("cyclopts.completion.detect.detect_shell", lambda: "bash")
    assert cli.main(["--install-completion"]) == 0
    path = capsys.readouterr().out.removeprefix("written: ").partition(";")[0]
    assert path.startswith(str(tmp_path))
    assert "complete -F _convoy convoy" in Path(path).read_text()


def test_the_program_runs_the_checkout_in_whose_root_it_is_typed(tmp_path):
    (tmp_path / "my checkout/.venv/bin").mkdir(parents=True)
    (tmp_path / "my checkout/.venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "my checkout/.venv/.ready-requirements.lock").touch()
    (tmp_path / "my checkout/requirements.lock").touch()
    os.utime(tmp_path / "my checkout/requirements.lock", (0, 0))
    for name in ("flows", "stages", "convoy", "Makefile"):
        (tmp_path / "my checkout" / name).symlink_to(ROOT / name)
    (tmp_path / "my checkout/data").mkdir()
    subprocess.run(["make", "-s", ".venv/bin/convoy"], cwd=tmp_path / "my checkout", check=True)
    (tmp_path / "my checkout").rename(tmp_path / "moved")
    program = tmp_path / "moved/.venv/bin/convoy"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def typed(folder, *words):
        return subprocess.run(
            [program, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    assert typed(tmp_path / "moved", "plan", "--help").stdout.startswith("Usage: convoy plan")
    assert typed(tmp_path / "moved", "pln").returncode == 2
    below = typed(tmp_path / "moved/data")
    assert below.returncode == 2
    assert below.stderr == (
        f"error: convoy runs at the root of a checkout, and {tmp_path}/moved/data is none. cd {tmp_path}/moved\n"
    )
    assert typed(tmp_path).stderr == f"error: convoy runs at the root of a checkout, and {tmp_path} is none.\n"
