"""Build a pure-Python wheel of Detectron2 v0.6 from the archive on PyPI.

Detectron2 has no release under its own name on PyPI. The source archive ``pb1-detectron2`` 0.6
holds the Python files of the official tag v0.6 unchanged, without the C++ sources, so it cannot be
built as it is. K-Net needs none of the C++ operators: this tool packs the same files, byte for
byte, into a wheel with a requirement list that current libraries can meet. The local version
``0.6+pure`` tells it from an official build.

    python tools/build_detectron2_wheel.py --out build/wheels
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import traceback
import zipfile
from pathlib import Path, PurePosixPath

ARCHIVE_NAME = "pb1-detectron2"
ARCHIVE_VERSION = "0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

WHEEL_VERSION = "0.6+pure"
DIST_INFO = f"detectron2-{WHEEL_VERSION}.dist-info"

# Where the official setup.py installs the three projects that ship with the library.
PROJECTS = {
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}
SUFFIXES = {".py", ".yaml"}

# The official list without what only caffe2 or the config printer needs (future, pydot, black),
# without the upper bound of iopath, and with what fvcore and the evaluators import undeclared.
REQUIREMENTS = (
    "torch>=1.8",
    "torchvision",
    "numpy",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "scipy",
    "shapely",
    "packaging",
)


class BuildError(RuntimeError):
    """Something the user can act on; shown without a traceback."""


def download_archive(folder: Path, python: str = sys.executable) -> Path:
    """Download the pinned archive with pip and return its path.

    The archive's setup.py imports torch, hence no build isolation: torch must be installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pin = folder / "pin.txt"
    pin.write_text(
        f"{ARCHIVE_NAME}=={ARCHIVE_VERSION} --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8"
    )
    command = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
    command += ["--requirement", str(pin), "--dest", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(_explain_pip_failure(done.stdout))
    found = sorted(folder.glob("pb1[-_]detectron2-*.tar.gz"))
    if not found:
        raise BuildError(f"pip reported success, but no archive is in {folder}.")
    return found[0]


def cached_archive(cache: Path) -> Path:
    """Return the archive in ``cache``, downloaded first if it is not there with the right hash."""
    archive = cache / f"{ARCHIVE_NAME}-{ARCHIVE_VERSION}.tar.gz"
    if not archive.is_file() or hashlib.sha256(archive.read_bytes()).hexdigest() != ARCHIVE_SHA256:
        with tempfile.TemporaryDirectory() as folder:
            data = check_archive(download_archive(Path(folder)))
        cache.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(data)
    return archive


def _explain_pip_failure(output: str) -> str:
    what = f"{ARCHIVE_NAME} {ARCHIVE_VERSION}"
    if "do not match the hashes" in output.lower():
        reason = f"{what} on the package index is not the archive pinned here: it was not used."
    elif "cannot declare direct URL dependencies" in output:
        reason = (
            f"This pip refuses {what}, because one of its optional extras (unused here) names a "
            "URL. Get the archive in another way and put it into the folder build/downloads or "
            "pass it with --archive FILE (its hash is checked), or install an official Detectron2."
        )
    elif "No module named 'torch'" in output:
        reason = f"pip reads the version of {what} by running its setup.py: install torch first."
    else:
        reason = f"pip could not download {what}. Is the package index reachable?"
    tail = "\n".join(f"  pip: {line}" for line in output.strip().splitlines()[-6:])
    return f"{reason}\n{tail}" if tail else reason


def check_archive(archive: Path, sha256: str = ARCHIVE_SHA256) -> bytes:
    """Return the archive's bytes; raise unless they have the pinned hash."""
    try:
        data = archive.read_bytes()
    except OSError as error:
        raise BuildError(f"Cannot read the archive {archive}: {error.strerror}.") from error
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise BuildError(f"{archive.name} has sha256 {actual}, expected {sha256}: it was not used.")
    return data


def select_files(data: bytes) -> dict[str, bytes]:
    """Return the files that go into the wheel, as path in the wheel -> content."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        for member in tar:
            inside = member.name.partition("/")[2]
            if not member.isfile() or PurePosixPath(inside).suffix not in SUFFIXES:
                continue
            target = _wheel_path(inside)
            source = tar.extractfile(member)
            if target is not None and source is not None:
                files[target] = source.read()
    if "detectron2/__init__.py" not in files:
        raise BuildError("The archive holds no detectron2 package.")
    return files


def _wheel_path(path: str) -> str | None:
    if ".." in PurePosixPath(path).parts:
        raise BuildError(f"The archive holds an unsafe path: {path}")
    if path.startswith("detectron2/"):
        return path
    for source, target in PROJECTS.items():
        if path.startswith(source):
            return target + path[len(source) :]
    return None


def build_wheel(
    archive: Path, out: Path, requirements: tuple[str, ...] = REQUIREMENTS, *, sha256: str
) -> Path:
    """Pack the files of ``archive`` into a wheel in ``out``. Same input, same bytes."""
    files = select_files(check_archive(archive, sha256))
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {WHEEL_VERSION}",
        "Summary: Detectron2 v0.6, its Python files unchanged, without the C++ operators",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in requirements),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: build_detectron2_wheel", "Root-Is-Purelib: true"]
    wheel.append("Tag: py3-none-any")
    files = dict(sorted(files.items()))
    files[f"{DIST_INFO}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[f"{DIST_INFO}/WHEEL"] = ("\n".join(wheel) + "\n").encode()
    files[f"{DIST_INFO}/top_level.txt"] = b"detectron2\n"
    record = [f"{name},{_record_hash(content)},{len(content)}" for name, content in files.items()]
    record.append(f"{DIST_INFO}/RECORD,,")
    files[f"{DIST_INFO}/RECORD"] = ("\n".join(record) + "\n").encode()

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            # A fixed date and mode keep the wheel the same on every machine.
            info = zipfile.ZipInfo(name, date_time=(2021, 11, 15, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            zipped.writestr(info, content)
    partial.replace(path)
    return path


def _record_hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def main(argv: list[str] | None = None) -> int:
    """Command line entry; prints the path of the wheel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/wheels"), help="folder to write to")
    parser.add_argument("--archive", type=Path, help="use this archive instead of downloading it")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/downloads"), help="where the archive is kept"
    )
    args = parser.parse_args(argv)
    try:
        archive = args.archive or cached_archive(args.cache)
        print(build_wheel(archive, args.out, sha256=ARCHIVE_SHA256))
    except (BuildError, OSError) as error:  # as `knet.errors.run_command`, which is not there yet
        if os.environ.get("KNET_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
