"""What `knet benchmark` measures and counts."""

import json
import math

import pytest
from PIL import Image

from knet.benchmark import benchmark, format_benchmark, random_predictor
from knet.errors import UserError
from knet_command import main

pytestmark = pytest.mark.slow


def test_numbers_of_a_model(predictor, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    numbers = benchmark(predictor, [str(tmp_path / "a.png")], repeats=3, warmup=1, batch=2)
    json.dumps(numbers)
    assert numbers["picture"] == [40, 60] and min(numbers["input"]) == 96  # as configured
    assert numbers["parameters"] == sum(p.numel() for p in predictor.model.parameters())
    stages = numbers["milliseconds"]
    assert set(stages) == {"prepare", "network", "results", "whole"}
    for found in stages.values():
        assert 0 < found["low"] <= found["median"] <= found["high"] < math.inf
    step = stages["network"]["median"] + stages["results"]["median"]
    assert numbers["images_a_second"] == pytest.approx(2000 / step)
    assert numbers["peak_memory"] > 2**20
    operations = numbers["operations"]
    assert 0 < operations["products"] < operations["total"] and operations["uncounted"] == {}
    assert operations["total"] == sum(operations["by_operator"].values())
    text = format_benchmark(numbers)
    assert "complete: every operator is counted" in text and "| knet " not in text
    assert "| knet " in format_benchmark(numbers, by_operator=True)
    operations["uncounted"] = {"aten::cosh": 2}
    assert "incomplete: not counted are aten::cosh (2)" in format_benchmark(numbers)


def test_more_pixels_are_more_operations(tiny_cfg):
    tiny_cfg.INPUT.MIN_SIZE_TEST = 0
    predictor = random_predictor(tiny_cfg)
    small, large = (
        benchmark(predictor, size=size, repeats=1, warmup=0)["operations"]["products"]
        for size in ((32, 64), (64, 64))
    )
    assert 1.5 < large / small < 2.1


def test_command_line(tiny_shapes, tiny_opts, model_folder, tmp_path, capsys):
    run = ["benchmark", "--size", "32", "64", "--repeats", "1", "--json", str(tmp_path / "x.json")]
    data = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    config = ["--config-file", "configs/shapes/panoptic.yaml"]
    assert main([*run, *config, *tiny_opts, *data]) == 0
    assert "weights: random" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "x.json").read_text())
    assert numbers["picture"] == [32, 64] and "table" not in numbers
    assert main([*run, "--model", str(model_folder)]) == 0
    assert f"weights: {model_folder}" in capsys.readouterr().out


def test_what_cannot_be_measured(tiny_cfg, predictor):
    with pytest.raises(UserError, match="at least 1"):
        benchmark(predictor, repeats=0)
    tiny_cfg.TEST.AUG.ENABLED = True
    with pytest.raises(UserError, match=r"TEST\.AUG\.ENABLED False"):
        benchmark(random_predictor(tiny_cfg))
