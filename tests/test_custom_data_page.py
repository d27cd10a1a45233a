"""Every command of docs/CUSTOM_DATA.md, as it stands there."""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import knet_command

from .data.formats.makers import MAKERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "CUSTOM_DATA.md").read_text(encoding="utf-8")
# what is tested is that the commands fit together: small model, small pictures, two steps
QUICK = shlex.split(
    "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 SOLVER.ACCUMULATION_STEPS 1 TEST.EVAL_PERIOD 2 "
    "MODEL.KNET.HIDDEN_DIM 16 MODEL.KNET.FFN_DIM 16 MODEL.KNET.NUM_ROUNDS 1 "
    "MODEL.KNET.ROUND_LEVELS [] "
    "INPUT.MIN_SIZE_TRAIN (64,64) INPUT.MIN_SIZE_TEST 64 INPUT.CROP.SIZE (64,64)"
)


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def _commands():
    joined = "\n".join(_blocks("bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def some_nuclei(folder, **counts):
    """The first images of `datasets/nuclei` of each part, with their objects."""
    source = ROOT / "datasets" / "nuclei"
    for part, count in counts.items():
        name = f"annotations/instances_{part}.json"
        content = json.loads((source / name).read_text(encoding="utf-8"))
        content["images"] = content["images"][:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        (folder / "images" / part).mkdir(parents=True)
        for image in content["images"]:
            place = f"images/{part}/{image['file_name']}"
            shutil.copyfile(source / place, folder / place)


@pytest.mark.slow
def test_the_commands_work_one_after_the_other(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)  # a folder that looks like a checkout
    Path("configs").symlink_to(ROOT / "configs")
    some_nuclei(Path("datasets/nuclei"), train=6, val=2)
    yaml = _blocks("yaml")[0]
    Path("my_data.yaml").write_text(yaml, encoding="utf-8")
    commands = _commands()
    calibrating = [command for command in commands if "--calibrate" in command]
    assert len(calibrating) == 1  # for panoptic data, which these are not
    commands.remove(calibrating[0])
    assert len(commands) == 15
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "knet"
        # what a run has chosen is quick by then
        begins = words[0] == "train" and "--data" in words and "--resume" not in words
        words += QUICK * (begins or "my_data.yaml" in words)
        status = knet_command.main(words)
        assert status == 0, f"{command}\n{''.join(capfd.readouterr())[-3000:]}"
    for run in ("nuclei", "longer", "again", "my_data", "my_data_skip"):
        out = Path("output", run)
        assert "segm/AP" in json.loads((out / "metrics.json").read_text().splitlines()[-1])
        for name in ("curves.png", "pictures/step_0000002.jpg", "model_best.pth", "log.txt"):
            assert (out / name).is_file(), name
    assert len(list(Path("predictions").iterdir())) == 2
    assert Path("output/nuclei/model/README.md").is_file() and Path("report.html").is_file()
    assert len(list(Path("output/check").glob("*.png"))) == 4 + 2  # of both parts
    assert Path("output/fixed_train.json").is_file() and Path("output/fixed_val.json").is_file()
    assert [path.name for path in Path("shards/my_train").glob("*.tar")] == ["my_train-000000.tar"]
    assert len(list(Path("output/my_data/sheets").glob("*.png"))) == 2


def test_the_table_has_every_format_with_its_task():
    tasks = dict(re.findall(r"^\| ([^|`]+) \| .* \| (\w+) \| [\w, ]*\|$", PAGE, re.MULTILINE))
    del tasks["format"]  # the head
    assert tasks == {"Cityscapes": "panoptic"} | {
        form: task for _, form, task, _ in MAKERS.values()
    }


def test_the_keys_of_the_page_exist():
    from knet.config import get_cfg_from_file

    cfg = get_cfg_from_file(str(ROOT / "configs/custom/instance.yaml"))
    keys = re.findall(r"`((?:MODEL|TEST|DATASETS|INPUT|SOLVER)(?:\.[A-Z_]+)+)`", PAGE)
    assert len(set(keys)) >= 9
    for key in keys:
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def _value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_the_values_of_the_page_work_on_the_command_line():
    from knet.config import get_cfg_from_file

    config = str(ROOT / "configs/Base-KNet.yaml")
    defaults = get_cfg_from_file(config)
    table = re.findall(r"^\| `([A-Z_.]+)` \| ([^|]+) \| (.*)$", PAGE, re.MULTILINE)
    assert len(table) == 10
    others = []
    for key, value, text in table:
        assert value == str(_value(defaults, key)), key
        assert _value(get_cfg_from_file(config, [key, value]), key) == _value(defaults, key)
        for other in re.findall(r"`(True|\"[^`]+\")`", text):
            # as a shell hands it on
            others.append(_value(get_cfg_from_file(config, [key, *shlex.split(other)]), key))
    assert others == [True, ["nucleus"]]
    recipe = str(ROOT / "configs/custom/instance.yaml")
    examples = re.findall(r"`((?:MODEL|TEST|SOLVER|INPUT)\.[A-Z_.]+ [^`]+)`", PAGE)
    assert len(examples) >= 7
    for example in examples:
        opts = shlex.split(example)
        cfg = get_cfg_from_file(recipe, opts)
        for key, text in zip(opts[::2], opts[1::2]):
            wanted, found = ast.literal_eval(text), _value(cfg, key)
            found = tuple(found) if isinstance(found, list) else found
            assert found == wanted, example
