"""What Detectron2 v0.6 needs on current libraries, each shim only where the thing is missing.

:func:`fit_detectron2` has :func:`apply_shims` come with the first import of ``detectron2``, before
any of its modules. An official build, v0.6 or the main branch, on libraries it was made for is left
alone. Nothing heavy is imported with this module.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import random
import sys
import types
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
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


def fit_detectron2() -> None:
    """Have `apply_shims` called when Detectron2 is first imported; now, if it is there already."""
    if "detectron2" in sys.modules:
        if detectron2_installed():
            _apply_quietly()
    elif not any(isinstance(finder, _BeforeDetectron2) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeDetectron2())


class _BeforeDetectron2(MetaPathFinder):
    """Finds Detectron2 as the other finders do, with a loader that applies the shims."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "detectron2":
            return None
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                # a folder of that name without a package has no place
                if spec.loader is not None and spec.has_location:
                    spec.loader = _FittingLoader(spec.loader, self)
                return spec
        return None


class _FittingLoader(Loader):
    """Loads Detectron2 by its own loader, which the module then has, and applies the shims."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _apply_quietly()


def _apply_quietly() -> None:
    with warnings.catch_warnings():
        # of decorators in Detectron2 and fvcore, for their authors
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated")
        apply_shims()


def apply_shims() -> None:
    """Apply every shim that is needed; imports parts of Detectron2. Safe to call again."""
    _restore_names()
    _offer_panopticapi()
    _stand_in_for_operators()
    if not _has_module("caffe2"):  # it has left torch, and detectron2.export imports it first
        _stand_in("detectron2.export.api")
    _allow_sampling_sets()
    if not _has_module("pkg_resources"):
        _import_model_zoo()


def _restore_names() -> None:
    """Attributes that libraries have dropped."""
    import numpy
    from PIL import Image
    from torch.optim import lr_scheduler

    # Gone in Pillow 10; a default argument in data/transforms reads it at import.
    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.BILINEAR  # type: ignore[attr-defined]
    # Gone in NumPy 1.24; sem_seg_evaluation, data/build and masks use them.
    for alias in (int, float, bool, str):
        if alias.__name__ not in vars(numpy):  # hasattr would warn
            setattr(numpy, alias.__name__, alias)
    # Since torch 2.0 schedulers are no longer _LRScheduler: the hook would not save their state.
    lr_scheduler._LRScheduler = lr_scheduler.LRScheduler  # type: ignore[misc,assignment]


class MissingOperators:
    """Stands for ``detectron2._C`` in a build without it; any operator raises when used."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            f"Detectron2's compiled operator '{name}' is not in this pure-Python build. K-Net does "
            "not use it; models that do need an official Detectron2 build."
        )


def _stand_in_for_operators() -> None:
    import detectron2

    # An attribute and not a sys.modules entry, so that collect_env still reports it as missing.
    if not hasattr(detectron2, "_C") and importlib.util.find_spec("detectron2._C") is None:
        detectron2._C = MissingOperators()  # type: ignore[attr-defined]
        # The fast evaluation is C++; coco_evaluation uses it by default.
        _stand_in(
            "detectron2.evaluation.fast_eval_api", COCOeval_opt="pycocotools.cocoeval:COCOeval"
        )


class SetSamplingRandom(random.Random):
    """``random.Random`` that still samples from a set, as before Python 3.11."""

    def sample(self, population: Any, k: int, **kwargs: Any) -> list[Any]:
        """Return ``k`` elements drawn without replacement."""
        sets = isinstance(population, (set, frozenset))
        return super().sample(tuple(population) if sets else population, k, **kwargs)


def _allow_sampling_sets() -> None:
    # Python 3.11 samples no sets: MapDataset would crash when a mapper returns None.
    from detectron2.data import common

    if sys.version_info >= (3, 11) and getattr(common, "random", None) is random:
        patched = types.ModuleType("random", random.__doc__)
        vars(patched).update({k: v for k, v in vars(random).items() if not k.startswith("__")})
        patched.Random = SetSamplingRandom  # type: ignore[attr-defined]
        common.random = patched  # type: ignore[attr-defined]


def _import_model_zoo() -> None:
    """setuptools 82 dropped pkg_resources, of which model_zoo uses one function.

    Only this import sees the substitute: elsewhere one without the other functions would mislead.
    """
    import detectron2.checkpoint
    import detectron2.modeling  # what model_zoo imports, before the substitute

    substitute = types.ModuleType("pkg_resources")
    substitute.resource_filename = _resource_filename  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = substitute
    try:
        import detectron2.model_zoo  # noqa: F401
    finally:
        del sys.modules["pkg_resources"]


def _resource_filename(package: str, resource: str) -> str:
    """As ``pkg_resources.resource_filename``, for packages that lie in a folder."""
    from importlib.resources import files

    return str(files(package).joinpath(resource))


def _offer_panopticapi() -> None:
    """Our panoptic quality as ``panopticapi``, which is not on PyPI; an installed one is used."""
    if not _has_module("panopticapi"):
        ours = "knet.evaluation.panoptic_quality"
        _stand_in("panopticapi")
        _stand_in("panopticapi.evaluation", pq_compute=f"{ours}:pq_compute")
        _stand_in("panopticapi.utils", id2rgb=f"{ours}:id2rgb", rgb2id=f"{ours}:rgb2id")


def _stand_in(name: str, **attributes: str) -> None:
    """Put a module where none is; its attributes, `module:name`, are imported at their use."""

    def lookup(attribute: str) -> Any:
        if attribute not in attributes:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return pkgutil.resolve_name(attributes[attribute])

    if name not in sys.modules:
        module = importlib.util.module_from_spec(ModuleSpec(name, None))
        module.__doc__ = f"What K-Net offers as {name}."
        module.__getattr__ = lookup  # type: ignore[method-assign]
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:  # as an import does, for `import panopticapi.utils`
            setattr(sys.modules[parent], last, module)


def _has_module(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None
