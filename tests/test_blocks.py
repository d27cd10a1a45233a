"""Every block of code on every page runs, or a line above it says why not: `<!-- not run: WHY -->`.

Blocks of Python run in turn with names that they share, commands one after the other, and YAML is
read as a config; all in a folder that has what pages speak of, with a tiny model of random weights.
"""

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from PIL import Image

import knet_command
from knet.config import get_cfg_from_file
from knet.modeling.build_neck import KNET_NECK_REGISTRY

from .test_custom_data_page import some_nuclei

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), ROOT / "datasets/README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
NO_CODE = {"text", "bibtex"}
# run by tests of their own, all of them, the first one with small settings
ELSEWHERE = {("docs/CUSTOM_DATA.md", "bash"), ("docs/MODEL.md", "python")}
_BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<why>[^\n]+) -->\n)?"
    r"^ *```(?P<language>\w*)\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page):
    """The blocks to run: (language, code)."""
    for match in _BLOCK.finditer(PAGES[page]):
        language = match["language"]
        if not match["why"] and language not in NO_CODE and (page, language) not in ELSEWHERE:
            yield language, textwrap.dedent(match["code"])


def test_blocks_are_of_known_languages_and_reasons_are_above_blocks():
    for page, text in PAGES.items():
        found = list(_BLOCK.finditer(text))
        assert text.count("```") == 2 * len(found), page
        languages = {match["language"] for match in found}
        assert languages <= NO_CODE | {"bash", "python", "yaml"}, page
        assert text.count("<!-- not run: ") == sum(bool(match["why"]) for match in found), page


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_cfg, model_folder):
    """What pages speak of, under the names that they use."""
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    some_nuclei(Path("datasets/nuclei"), train=2, val=2)
    photo = ROOT / "datasets/coco_photos/images/val/000000001993.jpg"
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copyfile(photo, name)
    Image.open(photo).save("city.tif")
    for place in ("folder", "output/demo/model"):
        shutil.copytree(model_folder, place)
    weights = build_model(tiny_cfg).state_dict()
    for config, file in (
        ("output/demo/config.yaml", "output/demo/model_best.pth"),
        ("my_data.yaml", "output/my_data/model_best.pth"),
    ):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(config).write_text(tiny_cfg.dump(), encoding="utf-8")
        torch.save({"model": weights}, file)
    yield tmp_path
    for registry, name in (
        (KNET_NECK_REGISTRY, "build_my_neck"),
        (BACKBONE_REGISTRY, "build_steps_backbone"),
    ):
        registry._obj_map.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))])
def test_blocks_run(page, folder, tiny_cfg, predictor, capfd):
    names = {"cfg": tiny_cfg, "model": predictor.model}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, page, "exec"), names)
        elif language == "yaml":
            _read_config(code)
        else:
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    assert words[0] == "knet", f"{line}: say above the block why it is not run"
                    status = knet_command.main(words[1:])
                    assert status == 0, f"{line}\n{''.join(capfd.readouterr())[-3000:]}"


def _read_config(code):
    if code.startswith("- "):  # entries of data sets
        code = f"DATASETS:\n  CUSTOM:\n{textwrap.indent(code, '    ')}"
    if "_BASE_" not in code:
        semantic = "MIN_TRAIN_SIZE" in code
        code = f"_BASE_: configs/Base-{'Semantic' if semantic else 'KNet'}.yaml\n{code}"
    Path("block.yaml").write_text(code, encoding="utf-8")
    get_cfg_from_file("block.yaml")


@pytest.mark.slow
def test_own_neck_and_loss_of_the_page_train(folder, tiny_cfg):
    """The blocks of docs/EXTEND.md define; that they work is seen in a step."""
    names: dict = {}
    for language, code in blocks("docs/EXTEND.md"):
        if language == "python":
            exec(compile(code, "docs/EXTEND.md", "exec"), names)
    tiny_cfg.MODEL.KNET.NECK = "build_my_neck"
    tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.DATALOADER.NUM_WORKERS = 2, 0
    tiny_cfg.MODEL.BACKBONE.NAME = "build_steps_backbone"
    tiny_cfg.MODEL.KNET.IN_FEATURES = ["p2", "p3", "p4", "p5"]

    class Both(names["TverskyTrainer"], names["CountingTrainer"]):
        pass

    trainer = Both(tiny_cfg)
    before = trainer.model.heads.neck.where.weight.detach().clone()
    results = trainer.train()
    assert type(trainer.model.heads.neck) is names["SumNeck"]
    assert type(trainer.model.backbone) is names["Steps"]
    assert not torch.equal(before, trainer.model.heads.neck.where.weight)
    assert "loss_tversky" in trainer.storage.latest()
    assert results["count"]["instances"] > 0
    assert len(DatasetCatalog.get("my_squares")) == 1
    assert MetadataCatalog.get("my_squares").thing_classes == ["square"]
