"""Scores of results in shards are those of the results."""

import pytest
from detectron2.data import DatasetCatalog

pytest.importorskip("pyarrow")

from knet.errors import UserError
from knet.evaluation import build_evaluator
from knet.evaluation.of_results import evaluate_outputs, evaluate_shards
from knet_command import main

from ..report import results as drawn
from ..results.test_read_shards import rows_of, write_shards


def test_scores_are_those_of_the_outputs(tiny_cfg, tmp_path, capsys, tiny_opts, model_folder):
    folder = write_shards(tmp_path / "s", rows_of())
    records = DatasetCatalog.get("tiny_val")
    evaluator = build_evaluator(tiny_cfg, "tiny_val", str(tmp_path / "e"))
    expected = evaluate_outputs(records, drawn.output_of, evaluator)
    assert evaluate_shards(tiny_cfg, folder) == expected
    assert 20 < expected["panoptic_seg"]["PQ"] < 95 and expected["segm"]["AP"] > 10
    assert expected["sem_seg"]["mIoU"] > 20

    data = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    words = ["eval", "--config-file", "configs/shapes/panoptic.yaml", "--results", str(folder)]
    assert not main([*words, *map(str, tiny_opts), *data])
    said = capsys.readouterr()
    assert f"{expected['panoptic_seg']['PQ']:.1f}" in said.out and "4/4" in said.err
    assert main([*words, "--calibrate"]) == 2
    assert "--results goes without --resume" in capsys.readouterr().err

    (model_folder / "model.safetensors").write_bytes(b"")  # they are not read
    words = ["eval", "--model", str(model_folder), "--results", str(folder)]
    assert not main([*words, "--dataset", "tiny_val"])
    assert f"{expected['panoptic_seg']['PQ']:.1f}" in capsys.readouterr().out

    write_shards(tmp_path / "part", rows_of()[:3])
    with pytest.raises(UserError, match=r"part lacks 1 of the data set's 4 images: 000001\.png"):
        evaluate_shards(tiny_cfg, tmp_path / "part")


def test_one_kind_of_results_has_its_scores(tiny_cfg, tmp_path):
    folder = write_shards(tmp_path / "s", rows_of(), tasks=["instance"])
    assert list(evaluate_shards(tiny_cfg, folder)) == ["segm"]
