"""A page made from the files of `knet predict` has the scores of the model that wrote them."""

from pathlib import Path

import torch
from detectron2.modeling import build_model

from knet.checkpoint.write_file import write_weights
from knet_command import main

from . import results
from .page_reader import PageReader


def test_files_give_the_page_of_the_model(tiny_cfg, tiny_opts, tiny_shapes, tmp_path):
    model = build_model(tiny_cfg)
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if name.endswith("class_predictor"):  # scores on both sides of the thresholds
            module.weight.data.normal_(std=0.5, generator=generator)
            module.bias.data.zero_()
    write_weights(tmp_path / "model.pth", model.state_dict())
    # thresholds of the config itself: options at the end of the line would override any flag
    config = tmp_path / "model.yaml"
    config.write_text(
        f"_BASE_: {Path('configs/shapes/panoptic.yaml').resolve()}\n"
        "MODEL: {KNET: {TEST: {OVERLAP_THRESH: 0.0, THING_THRESH: 0.6}}}\n"
    )
    opts = [*tiny_opts, "MODEL.WEIGHTS", tmp_path / "model.pth"]

    def arguments(*flags):
        words = results.arguments(opts, *flags)
        words[words.index("--config-file") + 1] = str(config)
        return words

    folder = tmp_path / "found"
    pictures = tiny_shapes / "val" / "images"
    words = arguments(pictures, "--results", folder, "--output", tmp_path / "drawn")
    assert main(["predict", *words[1:]]) == 0
    columns = {"panoptic": ("PQ", "AP"), "instance": ("F1", "AP")}
    for task, measures in columns.items():
        pages = []
        for source in ([], ["--predictions", folder]):
            path = tmp_path / "page.html"
            flags = ["--task", task, "--score-threshold", 0.1, "--output", path, *source]
            assert main(arguments(*flags)) == 0
            pages.append(PageReader(path.read_text(encoding="utf-8")).classes)
        run, files = pages
        assert sum(float(row["False"] or 0) for row in run.values()) > 4
        for name, row in run.items():
            for column in (*measures, "Found", "False", "Missed"):
                assert files[name][column] == row[column], (task, name, column)
