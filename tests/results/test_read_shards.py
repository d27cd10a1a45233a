"""Shards that do not fit, or are damaged, are told as such."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

pytest.importorskip("pyarrow")

from knet.classes import categories_of
from knet.results.encode import ResultEncoder
from knet.results.parquet import (
    encode_row,
    error_row,
    pa,
    pq,
    result_schema,
    shard_name,
)
from knet.results.read_shards import ShardPredictions

from ..report import results as drawn

TASKS = ["panoptic", "instance", "semantic"]


def categories():
    return categories_of(MetadataCatalog.get("tiny_val"), drawn.IDS)


def rows_of():
    """Of drawn results of tiny_val, the last image first."""
    encode = ResultEncoder(categories())
    rows = []
    for record in reversed(DatasetCatalog.get("tiny_val")):
        name = record["file_name"].rpartition("/")[2]
        image = {"image_id": record["image_id"], "path": record["file_name"], "file_name": name}
        rows.append(encode_row(image, encode(drawn.output_of(record), name)))
    return rows


def write_shards(folder, rows, shard_size=3, tasks=TASKS):
    folder.mkdir(exist_ok=True)
    schema = result_schema(tasks, categories())
    for k in range(0, len(rows), shard_size):
        table = pa.Table.from_pylist(rows[k : k + shard_size], schema)
        pq.write_table(table, folder / shard_name(k // shard_size), row_group_size=2)
    return folder


def test_results_are_what_was_written(tiny_shapes, tmp_path):
    found = ShardPredictions(write_shards(tmp_path / "s", rows_of()), categories=categories())
    records = DatasetCatalog.get("tiny_val")
    assert found.missing(records) == [] and found.tasks == TASKS
    ordered = found.in_order(records)
    assert list(ordered) == records[::-1]
    for record in ordered:
        output, expected = found.output_of(record), drawn.output_of(record)
        assert (output["panoptic_seg"][0] == expected["panoptic_seg"][0]).all()
        assert output["panoptic_seg"][1] == expected["panoptic_seg"][1]
        assert (output["sem_seg"].float() == expected["sem_seg"]).all()
        for field, values in expected["instances"].get_fields().items():
            values = getattr(values, "tensor", values)
            ours = output["instances"].get(field)
            assert (getattr(ours, "tensor", ours) == values).all()


def test_missing_and_broken_pictures_are_named(tiny_shapes, tmp_path):
    rows = rows_of()[:3]
    rows[1] = error_row(rows[1], "it was cut") | dict.fromkeys(("rles", "panoptic_png"))
    folder = write_shards(tmp_path / "s", rows)
    found = ShardPredictions(folder, categories=categories())
    records = DatasetCatalog.get("tiny_val")
    assert found.missing(records) == ["000001.png", "000003.png (it was cut)"]


def test_pictures_of_one_name_are_told_by_their_folders(tiny_shapes, tmp_path):
    rows = rows_of()[:2]
    for row, place in zip(rows, ("/clips/a/1.png", "clips/b.tar")):
        row.update(path=place, file_name="1.png")
    records = [{"file_name": "data/a/1.jpg"}, {"file_name": "data/b.tar/1.png"}]
    found = ShardPredictions(write_shards(tmp_path / "s", rows), categories=categories())
    assert found.missing(records) == []
    assert [found.output_of(r)["sem_seg"].shape for r in found.in_order(records[::-1])]
    assert list(found.in_order(records[::-1])) == records
    found = ShardPredictions(write_shards(tmp_path / "t", rows[1:]), categories=categories())
    assert found.missing(records) == ["1.jpg"]
    with pytest.raises(ValueError, match="two records of the picture data/a/1"):
        found.missing([records[0]] * 2)


def test_shards_that_do_not_fit(tiny_shapes, tmp_path):
    records = DatasetCatalog.get("tiny_val")

    def fails(error, message, rows=None, **options):
        folder = tmp_path / "s"
        if rows is not None:
            write_shards(folder, rows, **options)
        with pytest.raises(error, match=message):
            found = ShardPredictions(folder, categories=options.get("ours", categories()))
            found.missing(records)
            for record in records:
                found.output_of(record)

    (tmp_path / "s").mkdir()
    fails(FileNotFoundError, "s: no results in it; knet predict --input writes them")
    rows = rows_of()
    fails(ValueError, "'000004' is there twice", [*rows, rows[0]])
    (tmp_path / "s" / shard_name(1)).unlink()
    for change, message in (
        (
            {"panoptic_png": b"x"},
            r"results-0000000.parquet, image '000004': its PNG cannot be read",
        ),
        ({"height": 7}, "its PNG cannot be read: 96x96 pixels for 96x7"),
        ({"segments": rows[0]["segments"][1:]}, "in the segments_info beside it 0 times"),
        ({"label_png": rows[0]["panoptic_png"]}, "image '000004' is no map of the labels 0 to 7"),
    ):
        fails(ValueError, message, [{**rows[0], **change}, *rows[1:]], shard_size=9)
    (k, row) = next((k, row) for k, row in enumerate(rows) if row["rles"])
    rows[k] = {**row, "rles": ["?" * 9] * len(row["rles"])}
    fails(ValueError, rf"image '00000{4 - k}', instance 1 of", rows, shard_size=9)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "s" / shard_name(0))
    fails(ValueError, "is no file that knet predict --input wrote")
    (tmp_path / "s" / shard_name(0)).write_bytes(b"PAR1")
    fails(ValueError, "is no file that knet predict --input wrote")


def test_shards_of_other_classes_or_kinds(tiny_shapes, tmp_path):
    folder = write_shards(tmp_path / "s", rows_of())
    with pytest.raises(
        ValueError, match=r"results-0000000.parquet has other classes than the data"
    ):
        ShardPredictions(folder, categories=categories()[1:])
    other = write_shards(tmp_path / "t", rows_of(), tasks=["panoptic"])
    (other / shard_name(1)).replace(folder / shard_name(1))
    with pytest.raises(ValueError, match=r"0000001.parquet has other results than .*0000000.parq"):
        ShardPredictions(folder, categories=categories())
