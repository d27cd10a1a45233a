"""A model as a LazyConfig of Detectron2: a Python file in place of YAML, each part replaceable.

from detectron2.config import LazyConfig, instantiate
model = instantiate(LazyConfig.load("examples/lazy_config.py").model)
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from knet.classes import ClassIds
from knet.modeling.backbones import init_fpn
from knet.modeling.criterion import KNetCriterion
from knet.modeling.kernels import KernelHead, KernelRounds, KNetHeads, UpdateRound
from knet.modeling.knet import KNet
from knet.modeling.neck import SemanticFPNNeck
from knet.modeling.task import MaskTask

things, stuff, levels = 80, 53, ["res2", "res3", "res4", "res5"]
model = L(KNet)(
    backbone=L(init_fpn)(
        backbone=L(FPN)(
            bottom_up=L(ResNet)(
                stem=L(BasicStem)(norm="BN"),
                stages=L(ResNet.make_default_stages)(depth=50, norm="BN"),
                out_features=levels,
                freeze_at=2,
            ),
            in_features=levels,
            out_channels=256,
        )
    ),
    in_features=["p2", "p3", "p4", "p5"],
    heads=L(KNetHeads)(
        neck=L(SemanticFPNNeck)(in_channels=[256] * 4),
        kernel_head=L(KernelHead)(num_thing_classes=things, num_stuff_classes=stuff),
        rounds=L(KernelRounds)(
            rounds=[L(UpdateRound)(num_classes=things + stuff) for _ in range(3)]
        ),
    ),
    criterion=L(KNetCriterion)(num_thing_classes=things, num_stuff_classes=stuff),
    task=L(MaskTask)(class_ids=L(ClassIds)(things=tuple(range(80)), stuff=tuple(range(80, 133)))),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
