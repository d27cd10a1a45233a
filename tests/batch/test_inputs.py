"""What inputs stand for, and the table of them."""

import numpy as np
import pytest
from PIL import Image

from knet.data import register_sem_seg
from knet.data.tar_shards import read_member
from knet.data.write_shards import write_shards
from knet.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from knet.batch.inputs import (  # noqa: E402
    Input,
    find_inputs,
    read_inputs,
    require_unique_stems,
    write_inputs,
)
from knet.results.coco_files import image_ids  # noqa: E402
from knet.results.parquet import read_about  # noqa: E402

from ..data.test_tar_shards import write_tar  # noqa: E402


def test_folders_lists_tables_and_tars(tmp_path):
    for name in ("b.png", "a.jpg", "notes.md", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    tar = write_tar(
        tmp_path / "d.tar",
        [("x/1.jpg", b"12"), ("x/1.png", b"labels"), ("x/2.json", b"{}"), ("x/3.PNG", b"345")],
    )
    (tmp_path / "list.txt").write_text("a.jpg\n\n  sub/é.png\n", encoding="utf-8")
    pq.write_table(pa.table({"path": ["b.png", "/far/z.png"]}), tmp_path / "t.parquet")
    said = []
    names = ("list.txt", "t.parquet", "*.png")
    found = list(find_inputs([str(tmp_path), *(str(tmp_path / n) for n in names)], said.append))
    folder = str(tmp_path)
    assert [(one.path.replace(folder, "."), one.file_name) for one in found] == [
        ("./a.jpg", "a.jpg"), ("./b.png", "b.png"),
        ("./d.tar", "x/1.jpg"), ("./d.tar", "x/2"), ("./d.tar", "x/3.png"),
        ("./a.jpg", "a.jpg"), ("./sub/é.png", "é.png"),
        ("./b.png", "b.png"), ("/far/z.png", "z.png"), ("./b.png", "b.png"),
    ]  # fmt: skip
    assert tar.read_bytes()[found[4].offset :][: found[4].size] == b"345"
    assert "sample x/2: no picture among its members (json)" in found[3].error
    assert said == [f"{tmp_path}: 1 .mp4 left out: videos are given one by one"]


def test_a_truncated_tar_is_one_input_that_names_it(tmp_path):
    tar = write_tar(tmp_path / "s.tar", [(f"k{k}.jpg", b"x" * 600) for k in range(3)])
    tar.write_bytes(tar.read_bytes()[:2200])
    said = []
    (found,) = find_inputs([str(tar)], said.append)
    assert "s.tar" in found.error and "truncated" in found.error and "sample k1" in found.error
    assert said == [f"error: {found.error}"]


@pytest.mark.parametrize("name, content, message", [
    ("gone.png", None, "gone.png: there is no such file"),
    ("x.txt", b"\xff\xfe\xfa", "x.txt cannot be read as a list of paths"),
    ("x.parquet", b"no table", "x.parquet cannot be read as Parquet"),
])  # fmt: skip
def test_inputs_that_stand_for_nothing(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(find_inputs([str(tmp_path / name)]))


def test_a_table_without_paths(tmp_path):
    pq.write_table(pa.table({"url": ["a"], "size": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"no column 'path'.*its columns are url, size"):
        list(find_inputs([str(tmp_path / "t.parquet")]))
    pq.write_table(pa.table({"path": [3]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="3 in the column 'path' is no path"):
        list(find_inputs([str(tmp_path / "t.parquet")]))


def test_shards_of_the_table_and_ids(tmp_path):
    names = ["7.png", "cat.png", "x/7.jpg", "12.png", "dog.png"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    found = find_inputs([str(tmp_path / "list.txt")])
    write_inputs(tmp_path / "inputs.parquet", found, shard_size=2, about={"model": "m"})
    parts = [read_inputs(tmp_path / "inputs.parquet", k).to_pylist() for k in range(3)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [row["image_id"] for part in parts for row in part] == image_ids(names)
    assert parts[2][0]["path"] == str(tmp_path / "dog.png")
    assert read_about(tmp_path / "inputs.parquet") == {"model": "m", "shard_size": 2, "images": 5}
    with pytest.raises(UserError, match="name no picture"):
        write_inputs(tmp_path / "none.parquet", iter([]), shard_size=2, about={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs.parquet", "list.txt"]


def test_photos_of_converted_data_are_found_beside_their_labels(tmp_path):
    suffixes = ("png", "jpg", "jpeg", "tif", "bmp", "webp", "gif")
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels").mkdir()
    for suffix in suffixes:
        photo, labels = np.full((9, 8, 3), 200, np.uint8), np.zeros((9, 8), np.uint8)
        Image.fromarray(photo).save(tmp_path / "photos" / f"{suffix}.{suffix}")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{suffix}.png")
    folders = {"image_root": tmp_path / "photos", "sem_seg_root": tmp_path / "labels"}
    register_sem_seg("all", **folders, classes=["a", "b"])
    (tar,) = write_shards("all", tmp_path / "shards", shard_bytes=10**9)
    found = {one.file_name: one for one in find_inputs([str(tar)])}
    assert set(found) == {f"{suffix}.{suffix}" for suffix in suffixes}
    for path in (tmp_path / "photos").iterdir():
        one = found[path.name]
        assert read_member(one.path, one.offset, one.size) == path.read_bytes()


def test_tars_of_other_programs(tmp_path):
    members = ["k.depth.png", "k.jpg", "k.json", "scan_1.5mm.jpg", "scan_2.5mm.jpg"]
    members += ["o.a.png", "o.b.png"]
    tar = write_tar(tmp_path / "s.tar", [(name, b"x") for name in members])
    k, first, second, odd = find_inputs([str(tar)])
    names = [one.file_name for one in (k, first, second)]
    assert names == ["k.jpg", "scan_1.5mm.jpg", "scan_2.5mm.jpg"]
    assert odd.file_name == "o" and "any of its members a.png, b.png may be" in odd.error


def test_working_directory_and_lists_of_globs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g").mkdir()
    for name in ("a.jpg", "b.mp4", "s.tar"):
        (tmp_path / "g" / name).write_bytes(bytes(10240))
    (tmp_path / "g" / "classes.txt").write_text("cat\ndog\n")
    said = []
    found = list(find_inputs(["g/*", "g/../g/a.jpg"], said.append))
    assert [one.path for one in found] == [f"{tmp_path}/g/a.jpg"] * 2
    assert said == [f"{tmp_path}/g/*: 1 .mp4 left out: videos are given one by one"]
    # of a suffix that the glob names
    lines = list(find_inputs(["g/*.txt"]))
    assert [one.path for one in lines] == [f"{tmp_path}/g/cat", f"{tmp_path}/g/dog"]
    with pytest.raises(UserError, match=r"g/c\*: no file matches"):
        list(find_inputs(["g/c*"]))


def test_what_comes_twice_is_taken_once(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    tar = write_tar(tmp_path / "s.tar", [("x/a.jpg", b"1"), ("y/a.png", b"2"), ("z/b", b"3")])
    (tmp_path / "list.txt").write_text("./a.jpg\nx/../a.jpg\n")
    said, table = [], tmp_path / "t.parquet"
    inputs = [str(tmp_path / name) for name in ("b.jpg", ".", "s.tar", "list.txt")]
    write_inputs(table, find_inputs(inputs), shard_size=2, about={}, say=said.append)
    parts = [read_inputs(table, k).to_pylist() for k in range(2)]
    names = ["b.jpg", "a.jpg", "x/a.jpg", "y/a.png"]
    assert [row["file_name"] for part in parts for row in part] == names
    assert [row["image_id"] for part in parts for row in part] == image_ids(names)
    assert said == ["named once more and left out: 5 pictures"]
    with pytest.raises(UserError, match=rf"{tmp_path}/a.jpg and {tar}/x/a.jpg would have one name"):
        require_unique_stems(table)
    other = tmp_path / "u.parquet"
    inputs = [Input("p", "a.jpg"), Input("q", "a.jpg", error="is gone"), Input("q", "b.jpg")]
    write_inputs(other, inputs, shard_size=9, about={})
    require_unique_stems(other)


@pytest.mark.parametrize("count, given, size", [
    (2500, 700, 700), (2000, 1000, 1000), (1001, 5000, 5000), (20, None, 8), (1281, None, 11),
])  # fmt: skip
def test_shards_of_any_size(tmp_path, count, given, size):
    table = tmp_path / "t.parquet"
    write_inputs(table, (Input(f"{k}", "x.jpg") for k in range(count)), shard_size=given, about={})
    assert read_about(table) == {"shard_size": size, "images": count}
    parts = [read_inputs(table, k).to_pydict() for k in range(-(-count // size))]
    assert [len(part["path"]) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert [int(path) for part in parts for path in part["path"]] == list(range(count))
    assert [one for part in parts for one in part["image_id"]] == list(range(1, count + 1))
