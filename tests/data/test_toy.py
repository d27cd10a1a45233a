import json

import pytest

from knet.data.toy import TOY_DATA, toy_data


@pytest.mark.parametrize("name", TOY_DATA)
def test_pictures_are_those_of_the_annotations(name):
    folder = toy_data(name)
    for part in ("train", "val"):
        content = json.loads((folder / f"annotations/instances_{part}.json").read_text())
        names = {image["file_name"] for image in content["images"]}
        assert names == {path.name for path in (folder / "images" / part).iterdir()}


def test_other_names():
    with pytest.raises(
        ValueError, match="'coco' does not come with knet; there are coco_photos, nuc"
    ):
        toy_data("coco")
