"""The flags that name a model."""

import argparse

import pytest

from knet.cli.model_arguments import add_model_arguments, load_predictor
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
    add_model_arguments(parser, "--predictor")
    with pytest.raises(UserError, match=said):
        load_predictor(parser.parse_args([flag, name]), ["MODEL.DEVICE", "cpu"])
