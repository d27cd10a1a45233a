"""Every command of docs/CUSTOM_DATA.md, as it stands there."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "CUSTOM_DATA.md").read_text()


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def _commands():
    joined = "\n".join(_blocks("bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like a checkout, with the page's YAML, made quick."""
    folder = tmp_path_factory.mktemp("custom_data")
    for name in ("configs", "datasets/make_shapes.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    (yaml,) = _blocks("yaml")
    quick, count = re.subn(r"MAX_ITER: \d+", "MAX_ITER: 3", yaml)
    assert count == 1
    (folder / "my_data.yaml").write_text(quick)
    return folder


def test_the_commands_work_one_after_the_other(workplace):
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    commands = _commands()
    assert len(commands) == 6
    for command in commands:
        # fewer scenes: what is tested is that the commands fit together
        command = command.replace("--train 200 --val 40", "--train 8 --val 4")
        done = subprocess.run(
            command, shell=True, cwd=workplace, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    out = workplace / "output"
    assert len(list((out / "my_data" / "check").glob("*.png"))) >= 4
    assert len(list((out / "my_data" / "sheets").glob("*.png"))) == 4
    for run in ("my_data", "my_data_skip"):
        lines = (out / run / "metrics.json").read_text().splitlines()
        assert "panoptic_seg/PQ" in json.loads(lines[-1])
        assert (out / run / "model_final.pth").is_file()


def test_the_keys_of_the_page_exist():
    from knet.config import get_cfg_from_file

    cfg = get_cfg_from_file(str(ROOT / "configs/nuclei/instance.yaml"))
    keys = re.findall(r"`((?:MODEL|TEST|DATASETS|INPUT|SOLVER)(?:\.[A-Z_]+)+)`", PAGE)
    assert len(set(keys)) >= 9
    for key in keys:
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_the_bases_train_as_long_as_the_page_says(tmp_path, caplog):
    import torch
    import yaml

    from knet.config import get_cfg_from_file
    from knet.training.optimizer import build_lr_scheduler, scale_to_processes

    (block,) = _blocks("text")
    solver = yaml.safe_load(block)["SOLVER"]
    bases = re.findall(r"^\| \w+ \| `(configs/[\w/]+\.yaml)` \|$", PAGE, re.MULTILINE)
    assert len(bases) == 3
    for base in bases:
        path = tmp_path / "own.yaml"
        path.write_text(f'_BASE_: "{ROOT / base}"\n{block}')
        cfg = scale_to_processes(get_cfg_from_file(str(path)), 1)
        assert {key: cfg.SOLVER[key] for key in solver} == solver
        build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], lr=cfg.SOLVER.BASE_LR))
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


def _value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_the_values_of_the_page_work_on_the_command_line():
    from knet.config import get_cfg_from_file

    config = str(ROOT / "configs/Base-KNet.yaml")
    defaults = get_cfg_from_file(config)
    table = re.findall(r"^\| `([A-Z_.]+)` \| ([^|]+) \| (.*)$", PAGE, re.MULTILINE)
    assert len(table) == 8
    others = []
    for key, value, text in table:
        assert value == str(_value(defaults, key)), key
        assert _value(get_cfg_from_file(config, [key, value]), key) == _value(defaults, key)
        for other in re.findall(r"`(True|\"[^`]+\")`", text):
            # as a shell hands it on
            others.append(_value(get_cfg_from_file(config, [key, *shlex.split(other)]), key))
    assert others == [True, ["nucleus"]]
    examples = re.findall(r"`((?:MODEL|TEST)[A-Z_.]+) ([\d.]+)`", PAGE)
    assert examples
    for key, value in examples:
        assert str(_value(get_cfg_from_file(config, [key, value]), key)) == value


def test_the_files_that_the_page_names_exist():
    for path in re.findall(r"`(configs/[\w/]+\.yaml)`", PAGE):
        assert (ROOT / path).is_file(), path
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
