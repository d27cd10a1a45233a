"""The data set that the benchmark of large data draws, and how it counts memory."""

import json
import os

from large_data import generate, look, memory

from knet.data.coco_instances import scan_coco_instances


def test_the_data_set_has_no_error_and_every_picture_an_object(tmp_path):
    generate(tmp_path, 6, 20)
    file = tmp_path / "annotations.json"
    ids = {
        category["id"]: k for k, category in enumerate(json.loads(file.read_text())["categories"])
    }
    scan = scan_coco_instances(str(file), str(tmp_path / "images"), ids)
    assert not scan.defects and len(scan.records) == 6
    found = [look(record) for record in scan.records]
    assert sum(sample["points"] for sample in found) == 20 * 64
    assert all(sample["points"] for sample in found)
    assert all(os.path.isfile(record["file_name"]) for record in scan.records)


def test_memory_counts_this_process():
    assert memory(os.getpid()) > 10 << 20
