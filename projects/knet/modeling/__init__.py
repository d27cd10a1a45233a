"""The K-Net model, top to bottom. Only knet, build, task and the backbones import Detectron2."""
