"""What is written as tar shards, and what is not."""

import pytest
from detectron2.data import DatasetCatalog

from knet.data import register_custom
from knet.data.defects import DataError
from knet.data.write_shards import write_shards
from knet.errors import UserError

from .broken_sets import CASES, make_broken
from .good_sets import make_good
from .test_defects import make_cfg


def test_what_cannot_be_written_is_said(tmp_path):
    case = next(c for c in CASES if c.name == "instances-unknown-category")
    entry = make_broken(case, tmp_path / "broken")
    register_custom(make_cfg(entry))
    with pytest.raises(DataError):
        write_shards(entry["NAME"], tmp_path / "out", shard_bytes=10**6)
    DatasetCatalog.register("both", lambda: [{"annotations": [], "sem_seg_file_name": "x"}])
    with pytest.raises(UserError, match="are of none of the formats of shards"):
        write_shards("both", tmp_path / "out", shard_bytes=10**6)
    good = make_good("coco_instances", tmp_path / "good")
    register_custom(make_cfg(good))
    with pytest.raises(UserError, match="is there already"):
        write_shards(good["NAME"], tmp_path / "good", shard_bytes=10**6)
    (tmp_path / "good" / "images" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        write_shards(good["NAME"], tmp_path / "out", shard_bytes=10**6)
    assert not (tmp_path / "out").exists()
