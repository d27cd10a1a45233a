"""Shared by all tests."""

# ruff: noqa: E402

import os

# Workers of pytest-xdist share the cores, and so do the programs that tests start.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if _workers > 1:  # before torch, which reads it once
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))

# isort: off
import knet  # noqa: F401  (before Detectron2)

# isort: on
import logging
import shutil
import signal
import struct
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

ROOT = Path(__file__).parents[1]
# milliseconds for what takes a second or two, on a machine with a lot else to do
BROWSER_PATIENCE = 120_000


def pytest_configure():
    """The same wherever pytest was started: seen from the root, and not as in the background.

    There, or under `nohup`, signals are ignored, also by the programs that tests start.
    """
    os.chdir(ROOT)
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)


def pytest_collection_modifyitems(items):
    """Whole folders are of one kind."""
    for item in items:
        place = item.path.relative_to(ROOT / "tests")
        if place.parts[0] == "export":
            item.add_marker(pytest.mark.export)
        if item.path.name == "test_browser.py":
            item.add_marker(pytest.mark.browser)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _clean_catalogs():
    """Names of data sets vanish after the test that registered them."""
    before = [(catalog, set(catalog.list())) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in before:
        for name in set(catalog.list()) - names:
            catalog.remove(name)


@pytest.fixture(autouse=True)
def _clean_loggers():
    """So do handlers of loggers, which would write to another test's captured output."""
    loggers = [logging.getLogger(name) for name in ("knet", "detectron2", "fvcore")]
    before = [(list(log.handlers), log.level, log.propagate) for log in loggers]
    yield
    for log, (log.handlers, level, log.propagate) in zip(loggers, before):
        log.setLevel(level)
    setup_logger.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _quick_look_up():
    """Detectron2 writes the config as YAML and reads that for each of three keys that it wants.

    It takes longer than the steps of many a training here.
    """

    def look_up(cfg, *keys, default=None):
        return next((cfg[key] for key in keys if key in cfg), default)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detectron2.engine.defaults._try_get_key", look_up)
        yield


@pytest.fixture
def blank_curves(monkeypatch):
    """`curves.png` is written as ever, but not drawn."""
    monkeypatch.setattr("knet.training.curves.curves_png", lambda metrics_json: b"PNG")


@pytest.fixture(scope="module")
def browser():
    """Chromium; for one module, as later tests may want an event loop of their own."""
    reason = "no Playwright: pip install -e '.[browser]'"
    playwright_api = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip(
            "no Chromium: install Debian's package `chromium`, or name one in the variable CHROMIUM"
        )
    with playwright_api.sync_playwright() as playwright:
        # a container's root may not use the sandbox
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=BROWSER_PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Opens an empty page with a session of its own, as one more user has it."""
    contexts = []

    def opened(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(BROWSER_PATIENCE)
        return context.new_page()

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def break_frames():
    """Overwrites frames of an AVI file, by their numbers from 1 on, with zeros."""

    def broken(path, numbers):
        data = bytearray(path.read_bytes())
        place, places = data.find(b"movi") + 4, []
        while data[place : place + 4] == b"00dc":
            (size,) = struct.unpack("<I", data[place + 4 : place + 8])
            places.append((place + 8, size))
            place += 8 + size + size % 2
        for number in numbers:
            start, size = places[number - 1]
            data[start : start + size] = bytes(size)
        path.write_bytes(data)

    return broken


@pytest.fixture
def tiny_opts(tmp_path):
    """Overrides that make configs/shapes/panoptic.yaml small and its output temporary."""
    return [
        "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "MODEL.SMALL_RESNET.CHANNELS", "[16, 32, 48, 64]", "MODEL.FPN.OUT_CHANNELS", "16",
        "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']",
        "MODEL.KNET.HIDDEN_DIM", "16", "MODEL.KNET.FFN_DIM", "32", "MODEL.KNET.NORM_GROUPS", "4",
        "MODEL.KNET.NUM_HEADS", "4", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "6",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory):
    """Registered data sets tiny_train and tiny_val of 12 and 4 scenes."""
    from knet.data import register_coco_panoptic, write_shapes

    root = tmp_path_factory.mktemp("tiny_shapes")
    for split, count in (("train", 12), ("val", 4)):
        folder = write_shapes(root, split=split, num_scenes=count, seed=3)
        register_coco_panoptic(
            f"tiny_{split}",
            image_root=folder / "images",
            panoptic_root=folder / "panoptic",
            panoptic_json=folder / "panoptic.json",
            instances_json=folder / "instances.json",
            sem_seg_root=folder / "semantic",
        )
    return root


@pytest.fixture
def tiny_cfg(tiny_opts, tiny_shapes):
    """A small panoptic config on the tiny shapes."""
    from knet.config import get_cfg_from_file

    data = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    return get_cfg_from_file("configs/shapes/panoptic.yaml", [*tiny_opts, *data])


@pytest.fixture
def semantic_cfg(tiny_opts, tiny_shapes):
    """A small semantic config on the tiny shapes."""
    from knet.config import get_cfg_from_file

    opts = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)",
            "MODEL.KNET.SEMANTIC.AUX_DIM", 16]  # fmt: skip
    return get_cfg_from_file("configs/shapes/semantic.yaml", [*tiny_opts, *opts])


@pytest.fixture
def predictor(tiny_cfg):
    """A tiny panoptic model with random weights."""
    from detectron2.modeling import build_model

    from knet.predictor import KNetPredictor

    tiny_cfg.MODEL.KNET.TEST.OVERLAP_THRESH = 0.0
    return KNetPredictor(tiny_cfg, build_model(tiny_cfg), MetadataCatalog.get("tiny_val"))


@pytest.fixture
def model_folder(predictor, tmp_path):
    """The same as its users have it."""
    predictor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
