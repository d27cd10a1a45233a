"""A page made from the files of demo/demo.py has the scores of the model that wrote them."""

import importlib.util
import sys
from pathlib import Path

import report as tool
import torch
from detectron2.modeling import build_model

from knet.checkpoint.write_file import write_weights

from . import results
from .page_reader import PageReader

_SPEC = importlib.util.spec_from_file_location(
    "demo_script_of_report", Path(__file__).parents[2] / "demo" / "demo.py"
)
demo = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = demo  # dataclasses look there
_SPEC.loader.exec_module(demo)


def test_files_give_the_page_of_the_model(tiny_cfg, tiny_opts, tiny_shapes, tmp_path):
    model = build_model(tiny_cfg)
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if name.endswith("class_predictor"):  # scores on both sides of the thresholds
            module.weight.data.normal_(std=0.5, generator=generator)
            module.bias.data.zero_()
    write_weights(tmp_path / "model.pth", model.state_dict())
    opts = [*tiny_opts, "MODEL.WEIGHTS", tmp_path / "model.pth"]
    opts += ["MODEL.KNET.TEST.OVERLAP_THRESH", 0.0, "MODEL.KNET.TEST.THING_THRESH", 0.6]
    pages = tmp_path / "run.html", tmp_path / "files.html"
    assert tool.main(results.arguments(opts, "--output", pages[0])) == 0

    folder = tmp_path / "found"
    words = results.arguments(opts, "--input", tiny_shapes / "val" / "images", "--results", folder,
                              "--opts")  # fmt: skip
    assert demo.main(words) == 0
    flags = ["--predictions", folder, "--output", pages[1]]
    assert tool.main(results.arguments(opts, *flags)) == 0

    run, files = (PageReader(page.read_text(encoding="utf-8")).classes for page in pages)
    assert sum(float(row["Found"] or 0) + float(row["False"] or 0) for row in run.values()) > 4
    for name, row in run.items():
        for column in ("PQ", "AP", "Found", "False", "Missed"):
            assert files[name][column] == row[column], (name, column)
