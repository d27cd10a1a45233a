"""What is written as tar shards, and what is not."""

import pytest
from detectron2.data import DatasetCatalog

from knet.data import register_custom
from knet.data import write_shards as module
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


def test_keys_of_pictures_of_one_name(monkeypatch):
    class Counted(dict):
        asked = 0

        def __contains__(self, key):
            Counted.asked += 1
            return super().__contains__(key)

    keys, count = Counted(), 300
    monkeypatch.setattr(module, "find_member", lambda path: None)
    names = ["x/rgb_3.png", *(f"{k}/rgb.png" for k in range(count)), "y/rgb_3.png", "z/a.b.png"]
    found = [module._key({"file_name": name}, keys) for name in names]
    numbers = [2, *range(4, count + 2)]
    assert found == ["rgb_3", "rgb", *(f"rgb_{k}" for k in numbers), "rgb_3_2", "a_b"]
    assert Counted.asked < 3 * count  # not once for each picture before
