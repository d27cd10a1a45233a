"""`knet convert-data` on a folder and on a config."""

import ast

from detectron2.data import DatasetCatalog

from knet.data import register_custom
from knet_command import main

from ..data.formats.makers import yolo
from ..data.good_sets import make_good
from ..data.test_defects import make_cfg


def test_a_folder_becomes_two_sets_of_shards(tmp_path, capsys):
    yolo(tmp_path / "photos")
    out = tmp_path / "out"
    assert main(["convert-data", "--data", str(tmp_path / "photos"), "--output", str(out)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "DATASETS.CUSTOM" in line]
    cfg = make_cfg({"NAME": "x"})
    cfg.DATASETS.CUSTOM = []
    for line in lines:  # what it says can be used as it is
        assert line.startswith(f"1 shards in {out}")
        entry = ast.literal_eval(line.partition("takes ")[2])
        plain = list(DatasetCatalog.get(entry["NAME"]))
        cfg.DATASETS.CUSTOM = [{**entry, "NAME": entry["NAME"] + "_shards"}]
        register_custom(cfg)
        kept = DatasetCatalog.get(entry["NAME"] + "_shards")
        assert [r["annotations"] for r in kept] == [r["annotations"] for r in plain]
    assert len(lines) == 2
    # nothing is overwritten
    assert main(["convert-data", "--data", str(tmp_path / "photos"), "--output", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_config_and_wrong_words(tmp_path, capsys):
    entry = make_good("semantic", tmp_path / "set")
    words = ["--config-file", "configs/shapes/semantic.yaml", "--dataset", entry["NAME"]]
    words += ["--output", str(tmp_path / "out")]
    opts = ["DATASETS.CUSTOM", str([entry]), "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    assert main(["convert-data", *words, *opts]) == 0
    assert len(list((tmp_path / "out" / "good_semantic").glob("*.tar"))) == 1
    assert main(["convert-data", *words, "--shard-size", "0"]) == 2
    assert main(["convert-data", *words, "--val", "x"]) == 2
    assert main(["convert-data", *words[:2], *words[4:], *opts]) == 2
    said = capsys.readouterr().err
    for text in ("--shard-size is 0", "--val and --task go with", "names no data set for --part"):
        assert text in said
