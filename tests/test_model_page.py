"""The code of docs/MODEL.md, and that its model is the one of the config."""

import re
from pathlib import Path

import torch

from knet.config import get_cfg_from_file
from knet.modeling.knet import KNet

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "MODEL.md").read_text(encoding="utf-8")


@torch.no_grad()
def test_a_model_without_a_config_is_that_of_the_config():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    torch.manual_seed(0)
    exec(code, names)
    found = names["model"]
    assert names["id_map"].shape == (192, 256)
    cfg = get_cfg_from_file(
        str(ROOT / "configs/coco/panoptic/knet_r50_fpn_1x.yaml"),
        ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", (),
         "MODEL.KNET.NUM_THING_CLASSES", 80, "MODEL.KNET.NUM_STUFF_CLASSES", 53],
    )  # fmt: skip
    torch.manual_seed(0)
    wanted = KNet(**KNet.from_config(cfg)).eval()
    assert str(wanted) == str(KNet(cfg).eval())
    trained = {n: p.requires_grad for n, p in wanted.named_parameters()}
    assert {n: p.requires_grad for n, p in found.named_parameters()} == trained
    state = wanted.state_dict()
    assert {n: t.shape for n, t in found.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }
    found.load_state_dict(state)
    (ours,), (theirs,) = (m([{"image": names["image"]}]) for m in (found, wanted))
    torch.testing.assert_close(ours["sem_seg"], theirs["sem_seg"], rtol=0, atol=1e-4)
    for name in ("options", "mask_upsample", "loss_stride", "class_ids"):
        assert getattr(found.task, name) == getattr(wanted.task, name)
    assert found.criterion.weights == wanted.criterion.weights
    costs = [
        {k: v for k, v in vars(m.criterion.matcher).items() if k != "_warned"}
        for m in (found, wanted)
    ]
    assert costs[0] == costs[1]


def test_every_file_of_the_model_stands_in_the_table():
    files = {path.name for path in (ROOT / "projects/knet/modeling").glob("[a-z]*.py")}
    assert files == {name for name in re.findall(r"`([a-z_]+\.py)", PAGE)}
