import pytest

from knet.errors import UserError, run_command


def _raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("no such\nthing"), "tool: error: no such thing\n"),
        (KeyError("a key"), "tool: error: a key (KeyError; KNET_TRACEBACK=1 shows where)\n"),
    ],
)
def test_an_error_for_the_user_is_one_line_and_status_2(capsys, monkeypatch, error, line):
    monkeypatch.delenv("KNET_TRACEBACK", raising=False)
    assert run_command("tool", _raising(error)) == 2
    assert capsys.readouterr().err == line
    monkeypatch.setenv("KNET_TRACEBACK", "1")
    assert run_command("tool", _raising(error)) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_message_of_the_package_stands_alone(capsys, tmp_path):
    from knet.checkpoint.read_file import read_file

    (tmp_path / "empty.pth").touch()
    assert run_command("tool", lambda: read_file(str(tmp_path / "empty.pth"))) == 2
    assert capsys.readouterr().err.endswith("copy or download it again\n")


def test_status_and_defects_go_through():
    assert run_command("tool", lambda: 1) == 1 and run_command("tool", lambda: None) == 0
    with pytest.raises(TypeError):
        run_command("tool", _raising(TypeError("a defect")))
