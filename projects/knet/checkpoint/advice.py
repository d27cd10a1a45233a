"""Which config keys make a model fit weights that do not."""

from __future__ import annotations

import re
from collections.abc import Iterable

_BACKBONE = "MODEL.BACKBONE.NAME or its size (MODEL.RESNETS.DEPTH, MODEL.SWIN, MODEL.TIMM)"

# patterns of names and the keys that decide on shapes; the first that fits a name counts
_SHAPES = [
    (r"heads\.kernel_head\.init_kernels\.", "MODEL.KNET.NUM_KERNELS"),
    (
        r"heads\..*(class_predictor|seg_predictor|kernel_head\.classifier|auxiliary\.classifier)\.",
        "the classes of DATASETS",
    ),
    (r"heads\.auxiliary\.", "MODEL.KNET.SEMANTIC.AUX_DIM"),
    (r"heads\.kernel_head\.decoder\.", "MODEL.KNET.HIDDEN_DIM"),
    (r"heads\.neck\.", "MODEL.FPN.OUT_CHANNELS or MODEL.KNET.HIDDEN_DIM"),
    (r"heads\.rounds\.\d+\.updater\.", "MODEL.KNET.UPDATER_DIM"),
    (r"heads\.rounds\.\d+\.interaction\.ffn\.", "MODEL.KNET.FFN_DIM"),
    (r"heads\.", "MODEL.KNET.HIDDEN_DIM"),
    (r"backbone\.fpn_", "MODEL.FPN.OUT_CHANNELS"),
    (r"backbone\.", _BACKBONE),
]
# … and on which weights there are
_PRESENCE = [
    (r"heads\.rounds\.", "MODEL.KNET.NUM_ROUNDS"),
    (r"heads\.auxiliary\.", "MODEL.KNET.LOSS.AUX_WEIGHT"),
    (r"heads\.kernel_head\.", "MODEL.KNET.KERNEL_HEAD"),
    (r"heads\.neck\.", "MODEL.KNET.NECK"),
    (r"backbone\.fpn_", "MODEL.FPN.IN_FEATURES"),
    (r"backbone\.", _BACKBONE),
]


def keys_to_change(wrong: Iterable[str], unmatched: Iterable[str] = ()) -> str:
    """Config keys, as text.

    Args:
        wrong: names of weights of another shape.
        unmatched: names that only one side has; looked at if none is wrong.
    """
    for names, table in ((wrong, _SHAPES), (unmatched, _PRESENCE)):
        keys = []
        for name in names:
            keys += [key for pattern, key in table if re.match(pattern, name)][:1]
        if keys:
            return ", ".join(list(dict.fromkeys(keys))[:3])
    return "MODEL"


def stage(name: str) -> str | None:
    """The stage of a backbone that a weight belongs to, such as `backbone.res4`."""
    found = re.match(
        r"backbone\.(bottom_up\.)?(res\d|layers\.\d|stem|patch_embed"
        r"|model\.(model\.)?(layer\d|(stages|layers|blocks)[._]\d+))[._]",
        name,
    )
    return None if found is None else found.group(0)[:-1].replace("_", ".")


def may_lack(name: str) -> bool:
    """Whether weights of a backbone from elsewhere may lack this one of ours.

    Detection adds offsets to convolutions and norms to the outputs of Swin.
    """
    pattern = r".*\.(conv2_offset\.\w+|num_batches_tracked)|backbone\.(bottom_up\.)?norm[0-3]\.\w+"
    return re.fullmatch(pattern, name) is not None
