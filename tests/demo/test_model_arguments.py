"""The flags that name a model, and config keys behind the values of a flag."""

import argparse

import pytest

from knet.demo.model_arguments import add_model_arguments, load_predictor, split_config_keys
from knet.errors import UserError


@pytest.mark.parametrize(
    ("flag", "name", "said"),
    [
        ("--model", "panoptic_r50", r"^panoptic_r50 is no folder.*there are panoptic_r50_"),
        ("--predictor", "panoptic_r50", r"^panoptic_r50 is no folder.*there are panoptic_r50_"),
        (
            "--model",
            "semantic_fcn_r50",
            r"^semantic_fcn_r50: .*no weights; train it with configs/ade",
        ),
    ],
)
def test_a_model_that_is_not_there(flag, name, said):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    with pytest.raises(UserError, match=said):
        load_predictor(parser.parse_args([flag, name]), ["MODEL.DEVICE", "cpu"])


def test_pictures_in_capitals_are_no_config_keys():
    keys = ["MODEL.WEIGHTS", "model.pth", "TEST.AUG.ENABLED", "True"]
    assert split_config_keys(["A.png", "PHOTO.JPG", *keys]) == (["A.png", "PHOTO.JPG"], keys)
    assert split_config_keys(["7", "VERSION.JPG.png", "MODEL"])[0][0] == "7"
    assert split_config_keys(["A.png"]) == (["A.png"], [])
    assert split_config_keys(["CUDNN_BENCHMARK", "True"]) == (["CUDNN_BENCHMARK", "True"], [])
