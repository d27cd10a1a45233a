"""Tar shards: members found at random, damage named."""

import io
import tarfile

import pytest

from knet.data.defects import DataError
from knet.data.tar_shards import photo_suffix, picture_of, read_index, read_member, split_name


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


MEMBERS = [
    ("a/0001.jpg", b"x" * 700),
    ("a/0001.json", b"{}"),
    ("a/0002.JPG", b""),
    ("a/0002.seg.png", b"y" * 512),
    ("a/" + "n" * 150 + ".jpg", b"long name"),
]


def test_members_are_found_and_read(tmp_path):
    path = write_tar(
        tmp_path / "s.tar", [("README", b"no suffix"), (".hidden.jpg", b"h"), *MEMBERS]
    )
    samples = read_index(path)
    found = {
        f"{key}.{suffix}": read_member(path, *place)
        for key, members in samples
        for suffix, place in members.items()
    }
    assert found == {name.replace("JPG", "jpg"): data for name, data in MEMBERS}
    assert [key for key, _ in samples] == ["a/0001", "a/0002", "a/" + "n" * 150]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_cut_is_named(tmp_path, form):
    members = [(f"k{k}.jpg", bytes([k]) * 600) for k in range(3)]
    whole = write_tar(tmp_path / "whole.tar", members, format=form).read_bytes()
    end = 3 * (512 + 1024)  # of the members: header and padded content of each
    for length in range(1, end + 512, 256):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar") as caught:
            read_index(path)
        if length >= 512:
            # the sample in which it ends, or the last whole one before
            assert f"behind sample k{(length - 512) // 1536}" in str(caught.value)
            assert caught.value.defect.kind == "shard-truncated"
    path.write_bytes(whole[: end + 512])
    assert len(read_index(path)) == 3


def test_other_damage_is_named(tmp_path):
    whole = write_tar(tmp_path / "s.tar", [("a.jpg", b"1"), ("b.jpg", b"2")])
    data = bytearray(whole.read_bytes())
    data[1024 + 100] ^= 1  # the second header
    whole.write_bytes(data)
    with pytest.raises(DataError, match=r"s\.tar: the header at byte 1,024, behind sample a, is"):
        read_index(whole)
    packed = tmp_path / "s.tar.gz"
    with tarfile.open(packed, "w:gz"):
        pass
    with pytest.raises(DataError, match=r"s\.tar\.gz: is no uncompressed tar.*unpack it"):
        read_index(packed)
    with pytest.raises(DataError, match="ends 9 bytes before the end of the member at 10,235"):
        read_member(whole, 10_235, 14)


def test_samples_that_are_torn_apart_are_named(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.jpg", b""), ("b.jpg", b""), ("a.json", b"")])
    with pytest.raises(DataError, match="sample a: its members do not follow each other"):
        read_index(path)
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b""), ("a.JPG", b"")])
    with pytest.raises(DataError, match=r"sample a: has two members \.jpg"):
        read_index(path)


def test_names():
    assert split_name("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    assert split_name("a/.x.jpg")[1] == split_name("a/b")[1] == ""


@pytest.mark.parametrize("members, picture", [
    ("jpg json png", "jpg"), ("depth.png jpg json", "jpg"), ("jpeg tif", "jpeg"),
    ("png image.png", "image.png"), ("mask.png image.raw", "image.raw"),
    ("png json tif", "tif"), ("webp png", "webp"), ("png json", "png"), ("txt heic png", "heic"),
    ("5mm.jpg", "5mm.jpg"), ("json seg.webp", "seg.webp"),
    ("json", "no picture among its members (json)"),
    ("json seg.png png", "any of its members seg.png, png may be"), ("bmp tif", "bmp, tif may be"),
    ("tif depth.png", "tif, depth.png may be"), ("jpg image.png", "jpg, image.png may be"),
])  # fmt: skip
def test_which_member_is_the_picture(members, picture):
    for suffixes in (members.split(), members.split()[::-1]):
        if " " not in picture:
            name = "k." + picture.replace("image.", "")
            assert picture_of("s.tar", "k", suffixes) == (picture, name)
            continue
        with pytest.raises(DataError) as caught:
            picture_of("s.tar", "k", suffixes)
        problem = caught.value.defect.problem
        words = set(problem.replace(",", "").split())
        assert set(picture.replace(",", "").split()) <= words
        assert "s.tar: sample k" in str(caught.value) and "as k.jpg or, of" in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "tiff", "gif", "psd", ""])
@pytest.mark.parametrize("labels", [["png"], []])
def test_pictures_are_named_so_that_they_are_found(suffix, labels):
    named = photo_suffix(suffix, labels=bool(labels))
    assert picture_of("s.tar", "k", [*labels, named, "json"])[0] == named
    assert (named == suffix) == (suffix not in ("psd", "") and [suffix] != labels)
