"""The card of a model, as text and beside a saved model."""

import pytest
import yaml
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from knet.checkpoint.class_names import ClassNames
from knet.config import get_cfg_of_model
from knet.model_card import model_card
from knet.predictor import KNetPredictor

CLASSES = ClassNames(("street cat", "sky_<b>|*"), 1)


def parts(card):
    """The head as a dict, and the texts below the headings by these."""
    _, head, body = card.split("---\n", 2)
    texts = dict(part.partition("\n")[::2] for part in body.split("\n## ")[1:])
    return yaml.safe_load(head), {name: text.strip() for name, text in texts.items()}


def test_what_a_card_says():
    cfg = get_cfg_of_model("panoptic_r50_3x", ["DATASETS.TRAIN", ("leaves_train",)])
    line = {"panoptic_seg/PQ": 44.345, "panoptic_seg/SQ": 80.0, "segm/AP": 33.0, "segm/AP-cat": 9.0,
            "iteration": 5, "total_loss": 1.5, "time/step": 2.0}  # fmt: skip
    card = model_card(cfg, CLASSES, parameters=1234567, scores=line, license="cc-by-4.0")
    head, texts = parts(card)
    assert head == {
        "license": "cc-by-4.0", "library_name": "knet", "pipeline_tag": "image-segmentation",
        "tags": ["k-net", "detectron2", "panoptic-segmentation", "instance-segmentation",
                 "semantic-segmentation"],
    }  # fmt: skip
    assert "# K-Net: panoptic, instance and semantic segmentation of 2 classes" in card
    assert texts["Scores"].splitlines() == [
        r"On coco\_2017\_val\_panoptic:", "", "| results | percent |", "|---|---|",
        "| panoptic | PQ 44.3, SQ 80.0 |", "| instances (masks) | AP 33.0 |",
    ]  # fmt: skip
    assert texts["Training"] == r"Trained on leaves\_train."
    assert "| parameters | 1,234,567 |" in texts["Model"] and "(depth 50)" in texts["Model"]
    assert texts["Classes"] == "Things (1): street cat.\n\n" + r"Stuff (1): sky\_\<b\>\|\*."
    assert texts["Licence"] == "Weights: cc-by-4.0."


def test_a_small_model_says_where_it_came_from():
    opts = ["MODEL.KNET.KERNEL_PEAKS", True, "MODEL.KNET.TEST.NUM_KERNELS", 300,
            "MODEL.KNET.ROUND_REPEATS", 2]  # fmt: skip
    cfg = get_cfg_of_model("panoptic_r50_3x", [*opts, "DATASETS.TEST", ()])
    one = ClassNames(("nucleus",), 1)
    card = model_card(cfg, one, parameters=1, scores={"segm/AP": 1.0}, base="/home/me/cells/a.pth")
    _, texts = parts(card)
    assert "segmentation of 1 class\n" in card
    assert "| kernels | found in the image, up to 300, updated in 6 rounds |" in texts["Model"]
    assert texts["Training"].endswith("It began with the weights cells/a.pth.")
    assert texts["Scores"].startswith("| results | percent |")
    card = model_card(cfg, one, parameters=1, base="package://lite0")
    assert "It began with the weights package://lite0." in card


def test_results_are_those_that_are_on():
    keys = [f"MODEL.KNET.TEST.{kind}_ON" for kind in ("PANOPTIC", "INSTANCE", "SEMANTIC")]
    cfg = get_cfg_of_model("panoptic_r50_3x", [keys[0], False, keys[2], False])
    card = model_card(cfg, CLASSES, parameters=1)
    assert "# K-Net: instance segmentation of" in card and '# results["instances"]\n' in card
    cfg = get_cfg_of_model("panoptic_r50_3x", [word for key in keys for word in (key, False)])
    card = model_card(cfg, CLASSES, parameters=1)
    assert "# K-Net: panoptic, instance and semantic segmentation of" in card


@pytest.mark.parametrize(
    ("license", "head", "said"),
    [("", {"license": "unknown"}, "not known"),
     ("Ours: ask us", {"license": "other", "license_name": "Ours: ask us"}, "Weights: Ours: ask")],
)  # fmt: skip
def test_what_is_not_known_is_said(license, head, said):
    cfg = get_cfg_of_model("semantic_fcn_r50", ["DATASETS.TRAIN", ()])
    found, texts = parts(model_card(cfg, None, parameters=1, license=license))
    assert head.items() <= found.items() and "semantic-segmentation" in found["tags"]
    assert said in texts["Licence"]
    assert texts["Scores"].startswith("None were given")
    assert texts["Classes"] == "The data set gave them no names."
    assert texts["Training"] == "The training data were not recorded."


def test_a_saved_model_has_its_card(tiny_cfg, tmp_path):

    model = build_model(tiny_cfg)
    count = sum(p.numel() for p in model.parameters())
    predictor = KNetPredictor(tiny_cfg, model, MetadataCatalog.get("tiny_train"))
    predictor.save_pretrained(tmp_path, scores={"segm/AP": 12.34}, license="mit")
    head, texts = parts((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert head["license"] == "mit" and "AP 12.3" in texts["Scores"]
    assert texts["Training"] == r"Trained on tiny\_train."
    assert f"| parameters | {count:,} |" in texts["Model"]
    assert texts["Classes"].startswith("Things (4): disc, ")
