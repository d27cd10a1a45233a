"""Config keys behind the values of a flag."""

from knet.demo.model_arguments import split_config_keys


def test_pictures_in_capitals_are_no_config_keys():
    keys = ["MODEL.WEIGHTS", "model.pth", "TEST.AUG.ENABLED", "True"]
    assert split_config_keys(["A.png", "PHOTO.JPG", *keys]) == (["A.png", "PHOTO.JPG"], keys)
    assert split_config_keys(["7", "VERSION.JPG.png", "MODEL"])[0][0] == "7"
    assert split_config_keys(["A.png"]) == (["A.png"], [])
    assert split_config_keys(["CUDNN_BENCHMARK", "True"]) == (["CUDNN_BENCHMARK", "True"], [])
