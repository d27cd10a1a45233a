"""All configuration keys of the project, with the published values as defaults."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from knet.config_check import check_config
from knet.config_file import check_pairs, merge_content, merge_pairs, read_config_files
from knet.data.config import add_data_config
from knet.zoo.models import config_path, find_model

__all__ = ["add_knet_config", "get_cfg_from_file"]

logger = logging.getLogger(__name__)


def add_knet_config(cfg: CN) -> None:
    """Add every key of K-Net to a Detectron2 config, in place, and register the model of them."""
    import knet.modeling.knet  # noqa: F401  (which reads configs, as this module does)

    add_data_config(cfg)
    _add_model_config(cfg)
    _add_solver_config(cfg)
    _add_evaluation_config(cfg)


def _add_model_config(cfg: CN) -> None:
    # of configs that were written before: ACCEL decides about convolutions, nothing is compiled
    if not cfg.key_is_renamed("MODEL.KNET.RECOMPUTE"):  # this may be the second call
        cfg.register_deprecated_key("MODEL.KNET.COMPILE")
        cfg.register_deprecated_key("MODEL.KNET.FAST_CONVOLUTIONS")
        cfg.register_renamed_key("MODEL.KNET.RECOMPUTE", "MODEL.KNET.ACCEL.RECOMPUTE")
    # the network; Detectron2's default is another one, which a config without this key would train
    cfg.MODEL.META_ARCHITECTURE = "KNet"
    cfg.MODEL.KNET = knet = CN()
    # number of classes of things (objects that are told apart); -1: taken from the metadata of the
    # data set; any other value must agree with it
    knet.NUM_THING_CLASSES = -1
    # number of classes of stuff (sky, ground …), in semantic models of all classes; -1 likewise
    knet.NUM_STUFF_CLASSES = -1
    # without a data set: which of the labels 0, 1, … are things; empty: the first ones
    knet.THING_IDS = []
    # weights of a model with other classes or another number of kernels: "strict" refuses them;
    # "adapt" keeps or repeats kernels, takes over the classes of the same name, and starts the
    # other ones afresh
    knet.FINETUNE = "strict"
    # True reads weight files that can only be read by running code that they hold
    knet.UNSAFE_WEIGHTS = False
    # learned thing kernels: at least as many as objects in an image; stuff kernels come on top
    knet.NUM_KERNELS = 100
    # how often kernels are updated from the pixels of their masks, each time with other weights
    knet.NUM_ROUNDS = 3
    # not published above 1: the NUM_ROUNDS rounds are gone through so many times, with the same
    # weights; every time has its losses
    knet.ROUND_REPEATS = 1
    # pixels that a round updates a kernel from: "hard", as published, all in its mask; not
    # published, "exclusive": each pixel goes to the one kernel that claims it most
    knet.GROUPING = "hard"
    # not published: rounds gather these pixels from these of IN_FEATURES in turn, ["p5", "p4",
    # "p3"], say, none finer than the masks; empty: all from the map that fuses them
    knet.ROUND_LEVELS = []
    # for many small objects and little training, not published: thing kernels start on places of
    # their own, which the features tell apart
    knet.KERNEL_PLACES = False
    # in place of learned thing kernels, not published: every image's own, each of which starts on a
    # peak of a heat map of object centres. NUM_KERNELS of them are trained, TEST.NUM_KERNELS found,
    # and training can see crops of the images
    knet.KERNEL_PEAKS = False
    # also for many small objects, not published: a round adds to the masks before it, at first
    # nothing
    knet.RESIDUAL_MASKS = False
    # training only, not published: so many kernels begin at each object, in every round at its true
    # mask with errors (MP-Former), NUM_KERNELS an image at most. 0: none
    knet.MASK_PILOTS = 0
    # training only, not published: further learned kernels, as many times NUM_KERNELS, but 300 at
    # most, of which so many are matched with each object (H-DETR). 0: none
    knet.ONE_TO_MANY = 0
    # where the first kernels come from: "learned" (instance and panoptic models), or in semantic
    # models the classifier of an "fcn", "psp", "aspp" (DeepLabV3) or "uper" head
    knet.KERNEL_HEAD = "learned"
    knet.HIDDEN_DIM = 256  # width of kernels and of the features that they convolve
    # the kernel updater's width if it is not HIDDEN_DIM: kernels are updated in parts of it
    knet.UPDATER_DIM = -1
    knet.NUM_HEADS = 8  # heads of the attention among kernels
    knet.FFN_DIM = 2048  # width inside the feed-forward network of a round
    knet.NORM_GROUPS = 32  # groups of the neck's group norms; divides HIDDEN_DIM
    # pyramid levels, finest first
    knet.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # masks are predicted at the stride of this one of them: 1, the second, as published, or 0
    knet.MASK_LEVEL = 1
    # what makes the features that kernels convolve of the levels: a name of KNET_NECK_REGISTRY.
    # Not published: "build_bifpn_neck", which passes through the levels both ways
    knet.NECK = "build_semantic_fpn_neck"
    knet.NECK_LAYERS = 2  # how often build_bifpn_neck does so
    # losses and results see the masks enlarged by this factor
    knet.MASK_UPSAMPLE = 2
    # initialisation: standard deviation of the neck's convolutions
    knet.CONV_INIT_STD = 0.01
    # initialisation: probability that is predicted for every class
    knet.CLASS_PRIOR = 0.01
    # statistics of the backbone's batch norms stay as loaded; their scale and shift are trained
    knet.FREEZE_NORM_STATS = True
    # images are padded to a multiple of this
    knet.SIZE_DIVISIBILITY = 32
    # training batches are padded to at least this (height, width), as published with crops
    knet.MIN_TRAIN_SIZE = (0, 0)
    # memory layout of weights and features, which convolutions are faster with
    knet.CHANNELS_LAST = True

    # what train_net.py and the predictor do for speed (knet/accel): batch norms folded into
    # convolutions in inference; on a CPU faster convolutions, losses and fusion in parts that fit
    # into caches; on a GPU CUDA graphs
    knet.ACCEL = CN()
    # False: the plain model, whose results differ by rounding
    knet.ACCEL.ENABLED = True
    # type of weights and features in inference: "float16" and "bfloat16" are faster on a GPU and
    # round results; sums over pixels and what kernels go through stay float32
    knet.ACCEL.DTYPE = "float32"
    # padded sizes of batches for which a GPU keeps graphs; the least recently used goes. 0: none
    knet.ACCEL.GRAPHS = 16
    # less memory, more time in training: activations of "backbone" (a ResNet's stages), "rounds",
    # "losses" (enlarged masks; on a CPU never kept) are computed again for the gradients
    knet.ACCEL.RECOMPUTE = ()

    # of semantic models only
    knet.SEMANTIC = CN()
    # norm of the decoder and the auxiliary head, by Detectron2's names: "BN", "SyncBN", "GN" …
    knet.SEMANTIC.NORM = "SyncBN"
    # share of channels that training drops before the classifiers
    knet.SEMANTIC.DROPOUT = 0.1
    # the backbone's feature under the auxiliary head, a training aid; see LOSS.AUX_WEIGHT
    knet.SEMANTIC.AUX_FEATURE = "res4"
    # width of the auxiliary head
    knet.SEMANTIC.AUX_DIM = 256

    # factors of the loss terms
    knet.LOSS = CN()
    knet.LOSS.CLASS_WEIGHT = 2.0  # focal loss of the classes
    knet.LOSS.MASK_WEIGHT = 1.0  # binary cross-entropy of a mask's pixels
    knet.LOSS.DICE_WEIGHT = 4.0  # dice loss of the masks
    # cross-entropy over the masks at each pixel, which one of them owns; 0 in instance models
    knet.LOSS.RANK_WEIGHT = 0.1
    # masks are compared with their targets at this many sampled points of each image and mask
    # (12544 in Mask2Former) for less time and memory; 0: at every pixel, as published
    knet.LOSS.NUM_POINTS = 0
    # classification of the pixels: by the initial masks, in semantic models in every round
    knet.LOSS.SEG_WEIGHT = 1.0
    knet.LOSS.PEAK_WEIGHT = 1.0  # focal loss of the heat map of KERNEL_PEAKS
    knet.LOSS.EXTRA_WEIGHT = 1.0  # all losses of MASK_PILOTS and ONE_TO_MANY, besides their own
    # auxiliary head of semantic models; 0 leaves it out
    knet.LOSS.AUX_WEIGHT = 0.4
    # factors of the costs by which kernels and objects are matched
    knet.COST = CN()
    knet.COST.CLASS_WEIGHT = 2.0  # focal cost of the class
    knet.COST.MASK_WEIGHT = 1.0  # binary cross-entropy of the mask's pixels
    knet.COST.DICE_WEIGHT = 4.0  # dice cost of the mask

    # which results a model gives. Detectron2's TEST.DETECTIONS_PER_IMAGE is the number of
    # instances, and as many are scored: raise it where images hold more than 100 objects
    knet.TEST = CN()
    knet.TEST.INSTANCE_ON = True  # objects, each with class, score and mask; not in semantic models
    knet.TEST.PANOPTIC_ON = True  # one segment for each pixel; not in semantic models
    knet.TEST.SEMANTIC_ON = True  # one class for each pixel
    # with KERNEL_PEAKS: kernels of an image; 0: NUM_KERNELS
    knet.TEST.NUM_KERNELS = 0
    # instances under this score are left out
    knet.TEST.SCORE_THRESH = 0.0
    # a pixel belongs to an instance above this probability; lower: larger masks
    knet.TEST.MASK_THRESH = 0.5
    # instances are ranked by class score times mean probability inside the mask, as in MaskFormer;
    # published: by the class score alone
    knet.TEST.MASK_SCORES = False
    # instances and panoptic segments of fewer pixels of the original image are left out, instances
    # after the top k was taken; 0 keeps empty instances, as published
    knet.TEST.MIN_AREA = 0
    # names of classes (or labels): only these are found as instances and panoptic segments; empty:
    # all. Other classes take no place among the top k and no pixel of a segment; a pixel is void
    # where an object of another class is and no chosen mask reaches 0.5. Semantic maps keep all
    knet.TEST.CLASSES = []
    # panoptic: kernels compete, are ordered and reported by class score times the mean probability
    # inside the mask to this power, as in Panoptic SegFormer, where it is 2; stuff, too. 0: by the
    # class score, as published. Products are lower: `knet eval --calibrate` finds thresholds
    knet.TEST.PANOPTIC_MASK_SCORES = 0.0
    # panoptic: things under this score become void
    knet.TEST.THING_THRESH = 0.3
    # panoptic: stuff under this score becomes void; published: none does
    knet.TEST.STUFF_THRESH = 0.0
    # panoptic: segments that win less than this share of the pixels of their own mask become void
    knet.TEST.OVERLAP_THRESH = 0.6
    # instance and panoptic models: megabytes of masks at the size of the image that are looked at
    # at a time, for which some three times as much is used; changes no result. With ACCEL a CPU
    # takes 32 at most
    knet.TEST.MASK_MEMORY = 512
    # semantic models can predict large images in windows, whose logits are averaged where they
    # overlap
    knet.TEST.WINDOW = CN()
    knet.TEST.WINDOW.SIZE = ()  # (height, width); empty: whole images
    knet.TEST.WINDOW.STRIDE = ()  # from one window to the next; empty: 2/3 of SIZE
    knet.TEST.WINDOW.BATCH_SIZE = 1  # windows that are predicted at a time

    # ResNet with a deep stem: MODEL.BACKBONE.NAME build_resnet_v1c_backbone
    cfg.MODEL.RESNET_V1C = CN()
    # 8 (res4 and res5 dilated), 16 (res5 dilated) or 32; depth, norm … are those of MODEL.RESNETS
    cfg.MODEL.RESNET_V1C.OUTPUT_STRIDE = 8

    # Swin Transformer: MODEL.BACKBONE.NAME build_swin_backbone or build_swin_fpn_backbone. The
    # defaults are Swin-T. S: depths 2, 2, 18, 2; B: also width 128, heads 4, 8, 16, 32; L: width
    # 192, heads 6, 12, 24, 48
    cfg.MODEL.SWIN = swin = CN()
    swin.EMBED_DIM = 96  # width of the first stage; each further one has twice that
    swin.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    swin.NUM_HEADS = [3, 6, 12, 24]  # attention heads of each stage
    swin.WINDOW_SIZE = 7  # patches along a side of an attention window
    # probability that training leaves out the last block's branches; it falls to 0 at the first
    swin.DROP_PATH_RATE = 0.2
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # stages whose maps are used
    # True: less memory, more time in training
    swin.GRADIENT_CHECKPOINTING = False

    # any model of timm with feature maps: MODEL.BACKBONE.NAME build_timm_backbone or
    # build_timm_fpn_backbone; a plain vision transformer (ViT, DeiT, EVA, DINOv2, DINOv3), of whose
    # last map a simple pyramid of MODEL.FPN.OUT_CHANNELS is made: build_timm_vit_backbone
    cfg.MODEL.TIMM = timm = CN()
    timm.NAME = "convnext_tiny"  # the model's name in timm
    # True: download timm's weights, without MODEL.WEIGHTS
    timm.PRETRAINED = False
    timm.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # stages whose maps are used
    # probability to leave out branches in training; -1: the model's own
    timm.DROP_PATH_RATE = -1.0
    # True: less memory, more time in training
    timm.GRADIENT_CHECKPOINTING = False
    # True: the whole model stays as loaded, and only what is on top of it (FPN or pyramid, heads)
    # is trained; MODEL.BACKBONE.FREEZE_AT then says nothing
    timm.FROZEN = False
    # further arguments of the timm model's architecture: numbers, texts and lists
    timm.KWARGS = CN(new_allowed=True)

    # a small residual network for training from scratch: MODEL.BACKBONE.NAME
    # build_small_resnet_backbone or build_small_resnet_fpn_backbone
    cfg.MODEL.SMALL_RESNET = small = CN()
    # widths of the stages; neighbours differ: Detectron2's basic block has no strided identity
    small.CHANNELS = [32, 64, 128, 160]
    small.BLOCKS = [1, 1, 1, 1]  # blocks of each stage
    small.STEM_STRIDE = 2  # stride of the first convolution
    small.NORM = "BN"  # norm, by Detectron2's names: "BN", "GN" …


def _add_solver_config(cfg: CN) -> None:
    # learning rate of the backbone (without its FPN) relative to the rest
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.25
    # weight decay of norms; None: WEIGHT_DECAY, as published for ResNets, where Detectron2's own
    # default 0.0 would exempt them
    cfg.SOLVER.WEIGHT_DECAY_NORM = None
    # weight decay of biases, also of norms' biases; None: that of the other parameters of a layer
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None
    # parameters without weight decay, as patterns of names: "backbone.*norm*"; they must not have
    # another one by the two keys before
    cfg.SOLVER.NO_DECAY = []
    # with SOLVER.AMP.ENABLED: "float16" (GPU), "bfloat16" (GPU and CPU), or "auto", which is
    # bfloat16 where the device computes in it, else float16 on a GPU and float32 on a CPU
    cfg.SOLVER.AMP.DTYPE = "auto"
    # the images of a step pass in this many parts, for less memory; must divide IMS_PER_BATCH
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # the batch that BASE_LR is meant for: where IMS_PER_BATCH is another one, the rate is scaled by
    # the square root of their ratio, as suits AdamW. 0: the rate as it stands
    cfg.SOLVER.REFERENCE_BATCH = 0
    # decay of a moving average of the weights, such as 0.999: d * average + (1 - d) * weights after
    # each step, where d is at most (1 + t) / (10 + t) after t steps. The average is what gets
    # evaluated, and what `model` in checkpoints holds; resuming goes on with both. 0: none
    cfg.SOLVER.EMA = 0.0
    # besides CHECKPOINT_PERIOD, a checkpoint is written after so many minutes without one; of these
    # the newest two are kept. 0: none
    cfg.SOLVER.CHECKPOINT_MINUTES = 10.0
    # with LR_SCHEDULER_NAME "WarmupPolyLR": the rate falls as (1 - step / MAX_ITER) ** this
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # "full_model", the only kind there is: the norm of all gradients together, as published
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"


def _add_evaluation_config(cfg: CN) -> None:
    # the score by which `model_best.pth` is chosen, of the first test data set: "segm/AP50", say.
    # Empty: the first that there is of panoptic_seg/PQ, segm/AP and sem_seg/mIoU. Higher is better
    cfg.TEST.BEST_METRIC = ""
    # after so many evaluations in a row without a better score, training ends. 0: never
    cfg.TEST.PATIENCE = 0
    # images of the first test data set that each evaluation draws (photo, truth, prediction), to
    # OUTPUT_DIR/pictures and TensorBoard; always the same ones. 0: none
    cfg.TEST.PICTURES = 4
    # services that get the metrics of a training, besides files and TensorBoard
    cfg.TRACKING = CN()
    # "wandb" (Weights & Biases), "mlflow"; their packages have to be installed
    cfg.TRACKING.WRITERS = []
    # the project, or experiment, that the run belongs to
    cfg.TRACKING.PROJECT = "knet"


def get_cfg_from_file(
    config_file: str | os.PathLike[str], opts: Sequence[Any] = (), *, allow_base: bool = True
) -> CN:
    """Config of a YAML file with overrides `KEY VALUE ...`, not frozen; on the CPU without a GPU.

    Args:
        config_file: a local file in UTF-8. A tag that would run code is an error.
        opts: keys and values.
        allow_base: False for files of strangers: `_BASE_` would read any other file.

    Raises:
        ValueError: the file is no YAML, or keys or values are wrong; the message names all.
        FileNotFoundError: for a missing file.
    """
    check_pairs(opts)
    cfg = get_cfg()
    add_knet_config(cfg)
    problems = []
    for path, content in read_config_files(os.fspath(config_file), allow_base=allow_base):
        problems += [f"{path}: {problem}" for problem in merge_content(cfg, content)]
    problems += merge_pairs(cfg, list(opts))
    if problems:
        raise ValueError("; ".join(problems))
    try:
        check_config(cfg)
    except ValueError as error:
        raise ValueError(f"{config_file}: {error}") from error
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logger.info("no GPU found: MODEL.DEVICE is set to cpu")
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def get_cfg_of_model(name: str, opts: Sequence[Any] = ()) -> CN:
    """Config of a named model (see `knet.zoo.models`) with the authors' weights of it.

    Args:
        name: such as "panoptic_r50_3x".
        opts: keys and values, as of `get_cfg_from_file`; MODEL.WEIGHTS takes other weights.

    Raises:
        ValueError: no such model, or as `get_cfg_from_file`.
    """
    weights = ["MODEL.WEIGHTS", f"knet://{name}"]
    return get_cfg_from_file(config_path(find_model(name).config), [*weights, *opts])
