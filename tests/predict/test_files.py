"""Which pictures are read, and which files are written."""

from pathlib import Path

import pytest
from PIL import Image

from knet.errors import UserError
from knet.predict.files import find_pictures, output_files, require_unique_stems, writable_folder


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "odd[1].png", "deep/c.webp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in" / "empty").mkdir()
    return tmp_path / "in"


def test_files_folders_and_globs(folder):
    def names(*inputs):
        found = find_pictures([str(folder / name) for name in inputs])
        return [str(p.relative_to(folder)) for p in found.pictures], len(found.problems)

    assert names("") == (["a.PNG", "b.jpg", "odd[1].png"], 0)
    assert names("b.jpg", "*.jpg", "gone.jpg") == (["b.jpg"], 1)
    assert names("**/*.webp", "odd[1].png") == (["deep/c.webp", "odd[1].png"], 0)
    inputs = [str(folder / name) for name in ("empty", "*.gif", "gone.jpg")]
    empty, no_match, gone = find_pictures(inputs).problems
    assert empty.startswith(f"{folder}/empty: no picture in this folder")
    assert no_match == f"{folder}/*.gif: no file matches"
    assert gone == f"{folder}/gone.jpg: there is no such file"


def test_what_a_folder_holds_and_is_not_read_is_said(folder, monkeypatch):
    for name in ("a.avif", "b.GIF", "c.jp2", "d.HEIC", "e.heic", "f.mp4", "g.mov", "h.svg"):
        (folder / name).write_bytes(b"")
    monkeypatch.setitem(Image.registered_extensions(), ".heic", "NONE")  # whatever is installed
    monkeypatch.setitem(Image.registered_extensions(), ".avif", "AVIF")
    monkeypatch.setitem(Image.OPEN, "AVIF", None)
    found = find_pictures([str(folder)])
    names = [path.name for path in found.pictures]
    assert names == ["a.PNG", "a.avif", "b.GIF", "b.jpg", "c.jp2", "odd[1].png"]
    heic, mov, mp4, svg = found.left_out
    assert heic.startswith(f"{folder}: 2 .heic left out: ") and "pip install pillow-heif" in heic
    assert "1 .mov left out: videos are given one by one" in mov and "1 .mp4" in mp4
    assert "1 .svg left out: not taken from folders" in svg
    assert found.problems == []
    monkeypatch.setitem(Image.OPEN, "NONE", None)  # with the plug-in
    assert "d.HEIC" in [path.name for path in find_pictures([str(folder)]).pictures]


def test_where_drawings_go(tmp_path):
    one, two, odd = Path("x/a.jpg"), Path("y/b.png"), Path("x/c.psd")
    out = tmp_path / "out"
    assert output_files([one], str(out / "drawn.png")) == [out / "drawn.png"]
    assert out.is_dir()
    # folders: there already, with a slash, without suffix, or for several files
    assert output_files([one], str(out)) == [out / "a.jpg"]
    assert output_files([one], f"{tmp_path}/new.dir/") == [tmp_path / "new.dir" / "a.jpg"]
    assert output_files([one], str(tmp_path / "plain")) == [tmp_path / "plain" / "a.jpg"]
    several = output_files([one, two, odd], str(tmp_path / "v1.0"))
    assert several == [tmp_path / "v1.0" / name for name in ("a.jpg", "b.png", "c.png")]
    video = [Path("street.mkv")]
    assert output_files(video, str(out), suffix=".mp4") == [out / "street.mp4"]
    assert output_files(video, str(out / "x.avi"), suffix=".mp4") == [out / "x.avi"]


def test_outputs_that_would_lose_something_are_refused(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"1")
    twins = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"]
    for inputs, output, message in (
        ([picture], str(tmp_path), "would overwrite the input"),
        ([picture], str(picture), "would overwrite the input"),
        (twins, str(tmp_path / "out"), "would have one name"),
        (twins, str(picture), "is a file, and there are 2 inputs"),
        ([picture], str(tmp_path / "a.txt"), r"no picture format has the suffix \.txt"),
        ([picture], str(picture / "sub" / "b.png"), "cannot be written: Not a directory"),
    ):
        with pytest.raises(UserError, match=message):
            output_files(inputs, output)
    with pytest.raises(UserError, match=r"--results: the results of a\.jpg and a\.png"):
        require_unique_stems([Path("a.jpg"), Path("a.png")], "--results")
    with pytest.raises(UserError, match=r"--results: .*cannot be written"):
        writable_folder(picture, "--results")
