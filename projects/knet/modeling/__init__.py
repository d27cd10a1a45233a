"""The K-Net model. Only meta_arch, classes, build_neck and the backbones import Detectron2."""
