"""The list of commands and slips of the pen, which come without PyTorch."""

import importlib
import subprocess
import sys

import pytest

import knet
import knet_command


def test_every_command_has_flags_and_an_example():
    for name in knet_command.COMMANDS:
        module = importlib.import_module(knet_command.module_of(name))
        assert callable(module.run) and callable(module.add_arguments)
        assert f"    knet {name}" in module.__doc__, name


def test_help_and_wrong_names_import_no_torch():
    code = (
        "import sys, knet_command\n"
        "assert knet_command.main(['--help']) == 0 and knet_command.main(['predikt']) == 2\n"
        "sys.exit('torch' in sys.modules or 'knet' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, text in knet_command.COMMANDS.items():
        assert f"  {name} " in done.stdout and text in done.stdout
    assert done.stderr == "knet: error: there is no command predikt; did you mean predict?\n"


def test_the_version(capsys):
    assert knet_command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"knet {knet.__version__}\n"


def test_without_words_the_help_is_an_error(capsys):
    assert knet_command.main([]) == 2
    said = capsys.readouterr()
    assert "usage: knet COMMAND" in said.err and not said.out
    assert knet_command.main(["x"]) == 2
    assert "there is no command x: there are predict, train," in capsys.readouterr().err


@pytest.mark.parametrize("name", list(knet_command.COMMANDS))
def test_help_of_each_command(name, capsys):
    with pytest.raises(SystemExit) as end:
        knet_command.main([name, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and f"usage: knet {name}" in said and "--traceback" in said


@pytest.mark.slow
def test_python_m_knet_is_the_same_and_passes_on_no_warnings_for_authors_of_libraries():
    done = subprocess.run(
        [sys.executable, "-m", "knet", "train", "--config-file", "x", "--epoch", "3"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("knet train: error: there is no option --epoch; did you mean --epochs?")
