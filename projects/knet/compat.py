"""What Detectron2 v0.6 needs on current libraries, each shim only where the thing is missing.

:func:`apply_shims` runs before ``detectron2.*`` is imported. An official build, v0.6 or the main
branch, on libraries it was made for is left alone. Nothing heavy is imported with this module.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

MISSING_DETECTRON2 = (
    "K-Net's models, data and trainer need Detectron2, which is not installed. Run `make install` "
    "in the repository root to set everything up in .venv (no compiler needed), or install an "
    "official Detectron2 build (see its INSTALL.md) and then run `pip install -e .`. The parts on "
    "torch alone (kernel updates, losses, post-processing) work without it."
)


def detectron2_installed() -> bool:
    """Whether ``detectron2`` can be imported; a folder of that name without a package is not it."""
    try:
        spec = importlib.util.find_spec("detectron2")
    except ValueError:  # a module object without a spec, put there by hand
        return sys.modules.get("detectron2") is not None
    return spec is not None and spec.has_location


def require_detectron2() -> None:
    """Raise an ImportError that says what to run if Detectron2 is missing."""
    if not detectron2_installed():
        raise ImportError(MISSING_DETECTRON2, name="detectron2")


def apply_shims() -> None:
    """Apply every shim that is needed. Cheap, and safe to call again."""
    _alias_pillow_linear()
    _alias_numpy_types()
    _alias_lr_scheduler()
    if _PATCHES not in sys.meta_path:
        sys.meta_path.insert(0, _PATCHES)
    if _PANOPTICAPI not in sys.meta_path:
        sys.meta_path.append(_PANOPTICAPI)
    for name, patch in _AFTER_IMPORT.items():
        if name in sys.modules:
            patch(sys.modules[name])


# ---- attributes that libraries have dropped ------------------------------------------------------


def _alias_pillow_linear() -> None:
    # Gone in Pillow 10; a default argument in data/transforms reads it at import.
    from PIL import Image

    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.BILINEAR  # type: ignore[attr-defined]


def _alias_numpy_types() -> None:
    # Gone in NumPy 1.24; sem_seg_evaluation, data/build and masks use them.
    import numpy

    for alias in (int, float, bool, str):
        if alias.__name__ not in vars(numpy):  # hasattr would warn
            setattr(numpy, alias.__name__, alias)


def _alias_lr_scheduler() -> None:
    # Since torch 2.0 schedulers are no longer _LRScheduler: the hook would not save their state.
    from torch.optim import lr_scheduler

    if hasattr(lr_scheduler, "LRScheduler"):
        lr_scheduler._LRScheduler = lr_scheduler.LRScheduler  # type: ignore[misc,assignment]


# ---- patches around the import of single Detectron2 modules --------------------------------------


class MissingOperators:
    """Stands for ``detectron2._C`` in a build without it; any operator raises when used."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            f"Detectron2's compiled operator '{name}' is not in this pure-Python build. K-Net does "
            "not use it; models that do need an official Detectron2 build."
        )


class SetSamplingRandom(random.Random):
    """``random.Random`` that still samples from a set, as before Python 3.11."""

    def sample(self, population: Any, k: int, **kwargs: Any) -> list[Any]:
        """Return ``k`` elements drawn without replacement."""
        return super().sample(
            tuple(population) if isinstance(population, (set, frozenset)) else population,
            k,
            **kwargs,
        )


def _add_missing_operators(detectron2: types.ModuleType) -> None:
    # An attribute and not a sys.modules entry, so that collect_env still reports it as missing.
    if not hasattr(detectron2, "_C") and importlib.util.find_spec("detectron2._C") is None:
        detectron2._C = MissingOperators()  # type: ignore[attr-defined]


def _replace_fast_coco_eval(fast_eval_api: types.ModuleType) -> None:
    # The fast evaluation is C++; coco_evaluation uses it by default.
    if isinstance(getattr(fast_eval_api, "_C", None), MissingOperators):
        fast_eval_api.COCOeval_opt = fast_eval_api.COCOeval  # type: ignore[attr-defined]


def _allow_sampling_sets(common: types.ModuleType) -> None:
    # Python 3.11 samples no sets: MapDataset would crash when a mapper returns None.
    if sys.version_info >= (3, 11) and getattr(common, "random", None) is random:
        patched = types.ModuleType("random", random.__doc__)
        vars(patched).update({k: v for k, v in vars(random).items() if not k.startswith("__")})
        patched.Random = SetSamplingRandom  # type: ignore[attr-defined]
        common.random = patched  # type: ignore[attr-defined]


def _exec_with_resource_filename(load: Callable[[], None], module: types.ModuleType) -> None:
    # setuptools 82 dropped pkg_resources; model_zoo uses one function of it. Only that import sees
    # the substitute: elsewhere a pkg_resources without its other functions would mislead.
    if _has_module("pkg_resources"):
        return load()
    substitute = types.ModuleType("pkg_resources")
    substitute.resource_filename = _resource_filename  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = substitute
    try:
        load()
    finally:
        del sys.modules["pkg_resources"]


def _exec_without_caffe2(load: Callable[[], None], module: types.ModuleType) -> None:
    # caffe2 has left torch, and detectron2.export imports its caffe2 part first.
    try:
        load()
    except ImportError:
        if _has_module("caffe2"):
            raise
        for name in [name for name in vars(module) if not name.startswith("__")]:
            delattr(module, name)
        module.__all__ = []  # type: ignore[attr-defined]


def _resource_filename(package: str, resource: str) -> str:
    """As ``pkg_resources.resource_filename``, for packages that lie in a folder."""
    from pathlib import Path

    return str(
        Path(str(sys.modules[package.partition(".")[0]].__path__[0])).joinpath(
            *package.split(".")[1:], *resource.split("/")
        )
    )


def _has_module(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


_AFTER_IMPORT: dict[str, Callable[[types.ModuleType], None]] = {
    "detectron2": _add_missing_operators,
    "detectron2.data.common": _allow_sampling_sets,
    "detectron2.evaluation.fast_eval_api": _replace_fast_coco_eval,
}
_AROUND_IMPORT: dict[str, Callable[[Callable[[], None], types.ModuleType], None]] = {
    "detectron2.export.api": _exec_without_caffe2,
    "detectron2.model_zoo.model_zoo": _exec_with_resource_filename,
}


class _PatchingLoader(importlib.abc.Loader):
    """Runs a module's own loader, and its patch with it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        # Give the module its own loader back first: inspect.getsource and torch.jit read it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        around = _AROUND_IMPORT.get(module.__name__)
        if around is not None:
            around(lambda: self._loader.exec_module(module), module)
        else:
            self._loader.exec_module(module)
            _AFTER_IMPORT[module.__name__](module)


class _PatchFinder(importlib.abc.MetaPathFinder):
    """Finds the modules named above as everybody else does, and wraps their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _AFTER_IMPORT and fullname not in _AROUND_IMPORT:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _PatchingLoader(spec.loader)
                return spec
        return None


# ---- panopticapi ---------------------------------------------------------------------------------

_PANOPTICAPI_NAMES = {
    "panopticapi": (),
    "panopticapi.evaluation": ("pq_compute",),
    "panopticapi.utils": ("id2rgb", "rgb2id"),
}


class _PanopticapiFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Offers our panoptic quality as ``panopticapi``, which is not on PyPI.

    It stands last in ``sys.meta_path``, so that an installed panopticapi is always found before it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        ours = fullname in _PANOPTICAPI_NAMES and not path  # a real package has a path
        if not ours:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname == "panopticapi")

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        names = _PANOPTICAPI_NAMES[module.__name__]

        def lookup(name: str) -> Any:
            if name not in names:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            from knet.evaluation import panoptic_quality

            return getattr(panoptic_quality, name)

        module.__doc__ = "K-Net's panoptic quality, under the name that Detectron2 imports."
        module.__getattr__ = lookup  # type: ignore[method-assign]


_PATCHES = _PatchFinder()
_PANOPTICAPI = _PanopticapiFinder()
