"""The wheel builder, offline, on a small archive made here."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "build_detectron2_wheel.py"

FILES = {
    "detectron2/__init__.py": b'__version__ = "0.6"\n',
    "detectron2/projects/__init__.py": b"",
    "detectron2/model_zoo/configs/Base.yaml": b"VERSION: 2\n",
    "detectron2/layers/csrc/vision.cpp": b"// left out\n",
    "projects/PointRend/point_rend/__init__.py": b"A = 1\n",
    "projects/Panoptic-DeepLab/panoptic_deeplab/config.py": b"B = 2\n",
    "projects/DeepLab/train_net.py": b"# left out\n",
    "tools/train_net.py": b"# left out\n",
    "setup.py": b"raise SystemExit\n",
}
KEPT = {
    "detectron2/__init__.py",
    "detectron2/projects/__init__.py",
    "detectron2/model_zoo/configs/Base.yaml",
    "detectron2/projects/point_rend/__init__.py",
    "detectron2/projects/panoptic_deeplab/config.py",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_detectron2_wheel", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_archive(path: Path, files: dict[str, bytes] = FILES) -> tuple[Path, str]:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheel_holds_the_files_unchanged(tool: ModuleType, tmp_path: Path) -> None:
    archive, sha256 = make_archive(tmp_path / "a.tar.gz")
    wheel = tool.build_wheel(archive, tmp_path / "out", sha256=sha256)
    assert wheel.name == "detectron2-0.6+pure-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as zipped:
        names = set(zipped.namelist())
        assert {name for name in names if ".dist-info/" not in name} == KEPT
        assert zipped.read("detectron2/projects/point_rend/__init__.py") == b"A = 1\n"
        metadata = zipped.read(f"{tool.DIST_INFO}/METADATA").decode()
        record = zipped.read(f"{tool.DIST_INFO}/RECORD").decode().splitlines()
    assert {line.split(",")[0] for line in record} == names
    assert "Version: 0.6+pure" in metadata
    assert "Requires-Dist: iopath>=0.1.7\n" in metadata
    assert "black" not in metadata


def test_same_archive_gives_the_same_bytes(tool: ModuleType, tmp_path: Path) -> None:
    archive, sha256 = make_archive(tmp_path / "a.tar.gz")
    first = tool.build_wheel(archive, tmp_path / "1", sha256=sha256).read_bytes()
    assert first == tool.build_wheel(archive, tmp_path / "2", sha256=sha256).read_bytes()


def test_pip_installs_the_wheel(tool: ModuleType, tmp_path: Path) -> None:
    archive, sha256 = make_archive(tmp_path / "a.tar.gz")
    wheel = tool.build_wheel(archive, tmp_path, sha256=sha256)
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--target", str(target), str(wheel)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (target / "detectron2/projects/panoptic_deeplab/config.py").read_bytes() == b"B = 2\n"


def test_wrong_hash_is_refused(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, sha256 = make_archive(tmp_path / "a.tar.gz")
    assert tool.main(["--archive", str(archive), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert sha256 in message and tool.ARCHIVE_SHA256 in message
    assert not (tmp_path / "out").exists()


def test_missing_archive_is_one_line(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--archive", str(tmp_path / "none.tar.gz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unsafe_path_and_empty_archive_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    unsafe, _ = make_archive(tmp_path / "u.tar.gz", {"detectron2/../../evil.py": b""})
    with pytest.raises(tool.BuildError, match="unsafe path"):
        tool.select_files(unsafe.read_bytes())
    empty, _ = make_archive(tmp_path / "e.tar.gz", {"setup.py": b""})
    with pytest.raises(tool.BuildError, match="no detectron2 package"):
        tool.select_files(empty.read_bytes())


def test_cached_archive_is_used_only_with_the_right_hash(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, sha256 = make_archive(tmp_path / "good.tar.gz")
    calls = []

    def download(folder: Path) -> Path:
        calls.append(folder)
        return good

    monkeypatch.setattr(tool, "ARCHIVE_SHA256", sha256)
    monkeypatch.setattr(tool, "download_archive", download)
    monkeypatch.setattr(tool.check_archive, "__defaults__", (sha256,))
    cached = tmp_path / "cache" / "pb1-detectron2-0.6.tar.gz"
    cached.parent.mkdir()
    cached.write_bytes(b"broken")
    assert tool.cached_archive(cached.parent).read_bytes() == good.read_bytes()
    assert tool.cached_archive(cached.parent) == cached
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM ...", "is not the archive pinned"),
        ("ModuleNotFoundError: No module named 'torch'", "install torch first"),
        ("Distributions from PyPI cannot declare direct URL dependencies", "--archive FILE"),
        ("ERROR: No matching distribution found", "Is the package index reachable?"),
    ],
)
def test_pip_failures_are_explained(tool: ModuleType, output: str, reason: str) -> None:
    message = tool._explain_pip_failure(output)
    assert reason in message and f"pip: {output}" in message


def test_no_index_is_a_clear_error(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(tool.BuildError, match="could not download pb1-detectron2"):
        tool.download_archive(tmp_path / "downloads")
