"""How the words behind `knet COMMAND` are read."""

import pytest

from knet.cli.parser import Parser, run, split_config_keys


@pytest.fixture
def parser():
    made = Parser("tool", "what it does")
    made.add_argument("--dataset", nargs="+")
    made.add_argument("--task")
    return made


def test_config_keys_stand_anywhere(parser):
    args = parser.parse(["SEED", "3", "--task", "x", "--dataset", "a", "b", "MODEL.DEVICE", "cpu"])
    assert args.dataset == ["a", "b"] and args.task == "x" and not args.traceback
    assert args.opts == ["MODEL.DEVICE", "cpu", "SEED", "3"] and args.inputs == []


def test_inputs_stand_before_config_keys(parser):
    parser.add_inputs("PICTURE", "files")
    args = parser.parse(["a.png", "B.PNG", "--task", "x", "MODEL.DEVICE", "cpu"])
    assert args.inputs == ["a.png", "B.PNG"] and args.opts == ["MODEL.DEVICE", "cpu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--taks", "x"], "there is no option --taks; did you mean --task?"),
        (["a", "--data-set=x", "b"], "there is no option --data-set=x; did you mean --dataset?"),
        (["--qqq"], "there is no option --qqq ("),
        (["-q", "a"], "there is no option -q ("),
        (["--task"], "--task: expected one argument"),
        (["--tas", "x"], "there is no option --tas; did you mean --task?"),
    ],
)
def test_a_wrong_flag_is_one_line(parser, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith("knet tool: error: ") and message in line
    assert line.endswith("(knet tool --help shows the options)")


def test_a_slip_of_the_pen_comes_before_what_is_required(parser, capsys):
    which = parser.add_mutually_exclusive_group(required=True)
    for flag in ("--config-file", "--model"):
        which.add_argument(flag)
    with pytest.raises(SystemExit):
        parser.parse(["--modle", "x", "a.jpg"])
    assert "there is no option --modle; did you mean --model?" in capsys.readouterr().err


def test_what_is_no_config_key_is_told(capsys):
    assert run("zoo", ["photo.jpg", "x"]) == 2
    assert "knet zoo: error: 'photo.jpg' stands where a config key must" in capsys.readouterr().err
    assert run("zoo", ["MODEL.DEVICE"]) == 2
    assert "MODEL.DEVICE has no value" in capsys.readouterr().err


def test_traceback_shows_where_an_error_comes_from(capsys, monkeypatch):
    monkeypatch.setenv("KNET_TRACEBACK", "")
    words = ["--config-file", "gone.yaml"]
    assert run("check", words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run("check", [*words, "--traceback"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "gone.yaml" in lines[-1]


def test_pictures_in_capitals_are_no_config_keys():
    keys = ["MODEL.WEIGHTS", "model.pth", "TEST.AUG.ENABLED", "True"]
    assert split_config_keys(["A.png", "PHOTO.JPG", *keys]) == (["A.png", "PHOTO.JPG"], keys)
    assert split_config_keys(["7", "VERSION.JPG.png", "MODEL"])[0][0] == "7"
    assert split_config_keys(["A.png"]) == (["A.png"], [])
    assert split_config_keys(["A.png", "SEED", "1"]) == (["A.png"], ["SEED", "1"])
