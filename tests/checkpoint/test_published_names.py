"""Published names and ours, both ways."""

import json
from pathlib import Path

import pytest
import torch

from knet.checkpoint.published_names import (
    export_published,
    import_published,
    to_our_name,
    to_published_name,
)

SHAPES = Path(__file__).parents[1] / "golden" / "published_shapes.json"


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_names_translate_both_ways(task):
    names = json.loads(SHAPES.read_text())[task]["parameters"]
    heads = [name for name in names if not name.startswith("backbone.")]
    ours = [to_our_name(name) for name in heads]
    assert None not in ours and len(set(ours)) == len(heads)
    assert [to_published_name(name) for name in ours] == heads


@pytest.mark.parametrize("head", ["fcn", "pspnet", "deeplabv3", "upernet"])
def test_semantic_names_translate_both_ways(head):
    names = list(json.loads(SHAPES.read_text())[f"semantic_{head}"]["parameters"])
    ours = [to_our_name(name, semantic=True) for name in names]
    assert None not in ours and len(set(ours)) == len(names)
    assert [to_published_name(name, semantic=True) for name in ours] == names


def test_kind_of_model_is_seen_from_the_names():
    state = {"decode_head.kernel_update_head.0.fc_mask.bias": torch.ones(2),
             "backbone.stem.4.running_var": torch.ones(3)}  # fmt: skip
    assert set(import_published(state)) == {
        "heads.rounds.0.mask_predictor.bias", "backbone.stem.conv2.norm.running_var",
    }  # fmt: skip


def test_unknown_published_names_are_all_listed():
    state = {"roi_head.mask_head.0.fc_mask.bias": torch.zeros(2), "a.b": torch.zeros(1),
             "c": torch.zeros(1)}  # fmt: skip
    with pytest.raises(KeyError, match=r"a\.b, c"):
        import_published(state)
    assert to_our_name("rpn_head.conv_seg.extra.weight") is None


def test_feature_transforms_become_matrices():
    name = "roi_head.mask_head.2.feat_transform.conv.weight"
    renamed = import_published({name: torch.zeros(4, 4, 1, 1)})
    assert renamed["heads.rounds.2.feature_transform.weight"].shape == (4, 4)


def test_kernels_of_training_are_left_out():
    state = {"heads.kernel_head.init_kernels.weight": torch.ones(2, 3, 1, 1)}
    helped = {**state, "heads.training_kernels.many.kernels.weight": torch.ones(4, 3, 1, 1)}
    assert list(export_published(helped)) == list(export_published(state)) != []
