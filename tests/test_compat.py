"""Each shim by what it makes possible, and that present things are left alone."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import random
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from knet import compat

needs_detectron2 = pytest.mark.skipif(
    not compat.detectron2_installed(), reason="Detectron2 is not installed"
)


def run_python(code: str, *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_module_import_is_light() -> None:
    code = """
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("compat", FILE)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        print([m for m in ("torch", "numpy", "PIL", "detectron2") if m in sys.modules])
    """
    done = run_python(code.replace("FILE", repr(compat.__file__)))
    assert done.stdout.strip() == "[]", done.stderr


@needs_detectron2
def test_applying_twice_changes_nothing() -> None:
    before = dict(sys.modules)
    compat.apply_shims()
    assert sys.modules == before


# ---- library attributes --------------------------------------------------------------------------


@needs_detectron2
def test_pillow_linear() -> None:
    from PIL import Image

    assert Image.LINEAR == Image.BILINEAR


@needs_detectron2
def test_present_attributes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy
    from PIL import Image

    mine = object()
    monkeypatch.setattr(Image, "LINEAR", mine, raising=False)
    monkeypatch.setattr(numpy, "int", mine, raising=False)
    numpy_bool = numpy.bool
    compat.apply_shims()
    assert Image.LINEAR is mine
    assert vars(numpy)["int"] is mine
    assert numpy.bool is numpy_bool


@needs_detectron2
def test_numpy_aliases() -> None:
    import numpy as np

    assert np.zeros(2, dtype=np.int).dtype == np.int64
    assert np.full(2, 0.5, dtype=np.float).sum() == 1.0
    assert np.array([0, 2]).astype(np.bool).tolist() == [False, True]
    assert np.array(["a"], dtype=np.str).tolist() == ["a"]


@needs_detectron2
def test_scheduler_state_is_saved_and_restored() -> None:
    import torch
    from detectron2.engine import hooks

    def make(steps: int) -> tuple[torch.optim.lr_scheduler.MultiStepLR, hooks.LRScheduler]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2], gamma=0.1)
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
        return scheduler, hooks.LRScheduler(optimizer, scheduler)

    _, hook = make(3)
    state = hook.state_dict()
    assert state["last_epoch"] == 3
    scheduler, fresh = make(0)
    fresh.load_state_dict(state)
    assert scheduler.last_epoch == 3
    assert scheduler.get_last_lr() == pytest.approx([0.1])


# ---- Detectron2 modules --------------------------------------------------------------------------


@needs_detectron2
@pytest.mark.parametrize(
    "name", ["engine", "evaluation", "model_zoo", "export", "modeling", "utils.analysis", "data"]
)
def test_detectron2_imports(name: str) -> None:
    assert importlib.import_module(f"detectron2.{name}").__name__ == f"detectron2.{name}"


def test_missing_operator_says_its_name() -> None:
    operators = compat.MissingOperators()
    with pytest.raises(RuntimeError, match=r"'deform_conv_forward'.*official Detectron2 build"):
        operators.deform_conv_forward(1, 2)
    assert not hasattr(operators, "__wrapped__")


@needs_detectron2
def test_operators_stand_in_only_where_missing() -> None:
    import detectron2
    import torch

    if importlib.util.find_spec("detectron2._C") is not None:
        assert not isinstance(getattr(detectron2, "_C", None), compat.MissingOperators)
        return
    assert "detectron2._C" not in sys.modules
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    with pytest.raises(RuntimeError, match="box_iou_rotated"):
        pairwise_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))


@needs_detectron2
def test_present_operators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import detectron2

    built = object()
    monkeypatch.setattr(detectron2, "_C", built, raising=False)
    monkeypatch.delitem(sys.modules, "detectron2.evaluation.fast_eval_api", raising=False)
    compat.apply_shims()
    assert detectron2._C is built
    assert "detectron2.evaluation.fast_eval_api" not in sys.modules


@needs_detectron2
def test_collect_env_runs() -> None:
    from detectron2.utils.collect_env import collect_env_info

    text = collect_env_info()
    assert "detectron2" in text
    if importlib.util.find_spec("detectron2._C") is None:
        assert "not built correctly" in text


@needs_detectron2
def test_coco_evaluator_scores_a_perfect_prediction(tmp_path: Path) -> None:
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    box = {"bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0}
    annotations = {
        "info": {},
        "images": [{"id": 7, "file_name": "7.png", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, **box}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(annotations))
    name = "compat_test_coco"
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "gt.json"),
        thing_classes=["thing"],
        thing_dataset_id_to_contiguous_id={1: 0},
    )
    try:
        evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False)
        evaluator.reset()
        found = Instances((100, 100))
        found.pred_boxes = Boxes(torch.tensor([[10.0, 20.0, 40.0, 60.0]]))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([0])
        evaluator.process([{"image_id": 7}], [{"instances": found}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)
    finally:
        MetadataCatalog.pop(name)
        assert name not in DatasetCatalog


@needs_detectron2
def test_sem_seg_evaluator_counts(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import SemSegEvaluator
    from PIL import Image

    truth = np.array([[0, 0, 1, 255]], dtype=np.uint8)
    Image.fromarray(truth).save(tmp_path / "gt.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "gt.png")}
    name = "compat_test_sem_seg"
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255)
    try:
        evaluator = SemSegEvaluator(name, distributed=False)
        evaluator.reset()
        predicted = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 1]]), 2).permute(2, 0, 1)
        evaluator.process([record], [{"sem_seg": predicted}])
        result = evaluator.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    assert result["mIoU"] == pytest.approx(50.0)  # both classes: one right of two in the union
    assert result["pACC"] == pytest.approx(100 * 2 / 3)


@needs_detectron2
def test_class_histogram_is_counted() -> None:
    from detectron2.data.build import print_instances_class_histogram

    print_instances_class_histogram([{"annotations": [{"category_id": 1}]}], ["a", "b"])


@needs_detectron2
def test_mapper_may_return_none() -> None:
    from detectron2.data.common import MapDataset

    def mapper(item: int) -> int | None:
        return item if item % 2 else None

    dataset = MapDataset(list(range(8)), mapper)
    items = [dataset[i] for i in range(8)]
    assert all(item % 2 for item in items)
    assert items[1::2] == [1, 3, 5, 7]
    assert random.Random is not compat.SetSamplingRandom  # the rest of the program is as before


def test_sampling_random_agrees_with_lists_and_pickles() -> None:
    ours, plain = compat.SetSamplingRandom(42), random.Random(42)
    assert ours.sample({3, 1, 2}, k=2) == plain.sample(tuple({3, 1, 2}), k=2)
    assert ours.sample([5, 6, 7], k=2) == plain.sample([5, 6, 7], k=2)
    assert pickle.loads(pickle.dumps(ours)).random() == ours.random()


@needs_detectron2
def test_model_zoo_finds_its_configs() -> None:
    from detectron2 import model_zoo

    name = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"
    assert Path(model_zoo.get_config_file(name)).is_file()
    assert model_zoo.get_config(name).MODEL.META_ARCHITECTURE == "PanopticFPN"


@needs_detectron2
def test_pkg_resources_substitute_is_seen_by_one_import_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("pkg_resources", "detectron2.model_zoo", "detectron2.model_zoo.model_zoo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    compat._import_model_zoo()
    zoo = sys.modules["detectron2.model_zoo.model_zoo"]
    assert zoo.pkg_resources.resource_filename is compat._resource_filename
    assert "pkg_resources" not in sys.modules


@needs_detectron2
def test_what_is_there_needs_no_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real `pkg_resources`, and Caffe2, which `detectron2.export.api` imports."""
    made: list[str] = []
    monkeypatch.setattr(compat, "_import_model_zoo", lambda: made.append("pkg_resources"))
    monkeypatch.setattr(compat, "_stand_in", lambda name, **_: made.append(name))
    for there, expected in ((True, set()), (False, {"pkg_resources", "detectron2.export.api"})):
        monkeypatch.setattr(compat, "_has_module", lambda _, there=there: there)
        compat.apply_shims()
        found = {name for name in made if not name.startswith("panopticapi")}
        assert found == expected
        assert there is not any(name.startswith("panopticapi") for name in made)


def test_a_stand_in_is_left_out_where_something_is(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType("stand_in_test")
    monkeypatch.setitem(sys.modules, "stand_in_test", mine)
    compat._stand_in("stand_in_test", root="math:sqrt")
    assert sys.modules["stand_in_test"] is mine
    monkeypatch.delitem(sys.modules, "stand_in_test")
    compat._stand_in("stand_in_test", root="math:sqrt")
    assert sys.modules["stand_in_test"].root(4) == 2
    with pytest.raises(AttributeError, match="'stand_in_test' has no attribute 'other'"):
        sys.modules["stand_in_test"].other  # noqa: B018


# ---- panopticapi ---------------------------------------------------------------------------------


@needs_detectron2
@pytest.mark.skipif(
    getattr(importlib.util.find_spec("panopticapi"), "loader", None) is not None,
    reason="the real panopticapi is installed",
)
def test_panopticapi_is_offered_where_it_is_missing() -> None:
    import panopticapi.utils
    from panopticapi.evaluation import pq_compute
    from panopticapi.utils import id2rgb, rgb2id

    from knet.evaluation import panoptic_quality

    assert pq_compute is panoptic_quality.pq_compute
    assert panopticapi.utils.rgb2id is rgb2id
    assert rgb2id(id2rgb(70000)) == 70000
    with pytest.raises(ImportError):
        importlib.import_module("panopticapi.converters")
    with pytest.raises(ImportError):
        from panopticapi.utils import IdGenerator  # noqa: F401


@pytest.mark.slow
@needs_detectron2
def test_a_real_panopticapi_comes_first(tmp_path: Path) -> None:
    package = tmp_path / "panopticapi"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "utils.py").write_text("rgb2id = 'real'\n")
    code = """
        from knet import compat
        compat.apply_shims()
        from panopticapi.utils import rgb2id
        print(rgb2id)
        try:
            import panopticapi.evaluation  # this real one has none: ours must not be mixed in
        except ImportError:
            print("not mixed")
    """
    done = run_python(code, cwd=tmp_path)
    assert done.stdout.split() == ["real", "not", "mixed"], done.stderr


# ---- without Detectron2 --------------------------------------------------------------------------

BLOCK = """
    import sys
    sys.modules["detectron2"] = None
    import knet
"""


def test_message_without_detectron2() -> None:
    code = BLOCK + "    assert knet.__version__\n    knet.add_knet_config\n"
    done = run_python(code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:") and "make install" in last and "pip install -e ." in last


CORE = ("criterion", "images", "kernels", "layers", "losses", "matcher", "neck", "panoptic",
        "postprocess", "predictions", "semantic", "targets")  # fmt: skip


@pytest.mark.slow
def test_torch_only_core_without_detectron2() -> None:
    imports = "".join(f"    import knet.modeling.{name}\n" for name in CORE)
    done = run_python(BLOCK + imports + "    print('ok')\n")
    assert done.stdout.strip() == "ok", done.stderr


def test_unknown_names_are_attribute_errors_without_detectron2() -> None:
    done = run_python(BLOCK + "    print(hasattr(knet, 'no_such_name'))\n")
    assert done.stdout.strip() == "False", done.stderr


def test_a_folder_named_detectron2_is_not_an_installation(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    code = """
        import importlib.util, sys
        sys.path[:] = [p for p in sys.path if "site-packages" not in p]
        spec = importlib.util.spec_from_file_location("compat", FILE)
        compat = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compat)
        print(compat.detectron2_installed())
    """
    done = run_python(code.replace("FILE", repr(compat.__file__)), cwd=tmp_path)
    assert done.stdout.strip() == "False", done.stderr
