"""Whether weights are of a model, what differs, and which config keys would make them fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from knet.checkpoint.finetune import adaptable_part
from knet.checkpoint.recognise import Weights

_BACKBONE = "MODEL.BACKBONE.NAME or its size (MODEL.RESNETS.DEPTH, MODEL.SWIN, MODEL.TIMM)"
# patterns of names and the keys that decide on shapes; the first that fits a name counts
_SHAPES = [
    (r"heads\.kernel_head\.init_kernels\.", "MODEL.KNET.NUM_KERNELS"),
    (r"heads\.training_kernels\.many\.", "MODEL.KNET.ONE_TO_MANY or MODEL.KNET.NUM_KERNELS"),
    (r"heads\.training_kernels\.pilots\.", "the classes of DATASETS"),
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
    (r"heads\.rounds\.\d+\.level_transform\.", "MODEL.KNET.ROUND_LEVELS"),
    (r"heads\.rounds\.", "MODEL.KNET.NUM_ROUNDS"),
    (r"heads\.training_kernels\.many\.", "MODEL.KNET.ONE_TO_MANY"),
    (r"heads\.training_kernels\.pilots\.", "MODEL.KNET.MASK_PILOTS"),
    (r"heads\.auxiliary\.", "MODEL.KNET.LOSS.AUX_WEIGHT"),
    (r"heads\.kernel_head\.", "MODEL.KNET.KERNEL_HEAD"),
    (r"heads\.neck\.", "MODEL.KNET.NECK"),
    (r"backbone\.fpn_", "MODEL.FPN.IN_FEATURES"),
    (r"backbone\.", _BACKBONE),
]
_STAGE = re.compile(
    r"backbone\.(bottom_up\.)?(res\d|layers\.\d|stem|patch_embed"
    r"|model\.(model\.)?(layer\d|(stages|layers|blocks)[._]\d+))[._]"
)
# weights from elsewhere may lack these of a backbone: detection adds offsets to convolutions and
# norms to the outputs of Swin
_OPTIONAL = re.compile(
    r".*\.(conv2_offset\.\w+|num_batches_tracked)|backbone\.(bottom_up\.)?norm[0-3]\.\w+"
)


class Misfits(NamedTuple):
    """Names of weights that do not fit.

    Attributes:
        wrong: of another shape: theirs and ours.
        missing: that only the model has.
        surplus: that only the file has.
    """

    wrong: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: set[str]
    surplus: set[str]


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Misfits:
    """Put what fits into a model: what does not."""
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = {
        name: (tuple(value.shape), ours[name])
        for name, value in state.items()
        if name in ours and tuple(value.shape) != ours[name]
    }
    fitting = {name: value for name, value in state.items() if name not in wrong}
    loaded = model.load_state_dict(fitting, strict=False)
    # norms make up for statistics that are missing
    return Misfits(wrong, set(loaded.missing_keys) - set(wrong), set(loaded.unexpected_keys))


def require_fit(
    misfits: Misfits, weights: Weights, model: nn.Module, *, strict: bool, name: str
) -> None:
    """Raise ValueError if the weights are of another model.

    Args:
        misfits: what `load_weights` gave.
        weights: of the file.
        model: that they were put into.
        strict: nothing may be missing or left over. Otherwise whole parts may, but a backbone that
            is part new, part loaded is of another depth or width.
        name: of the file, for messages.
    """
    wrong, missing, surplus = misfits
    names = model.state_dict().keys()
    nothing_fits = {n for n, _ in model.named_parameters()} <= missing | set(wrong)
    if not (nothing_fits or wrong or strict):
        given, stages = ({_stage(n) for n in side} - {None} for side in (weights.state, names))
        missing = {n for n in missing if _stage(n) in given and not _OPTIONAL.fullmatch(n)}
        surplus = {n for n in surplus if _stage(n) in stages}
    if not (nothing_fits or wrong or missing or surplus):
        return
    examples = [f"{n} (is {a}, should be {b})" for n, (a, b) in list(wrong.items())[:3]]
    examples += [f"{n} (missing)" for n in sorted(missing)[:3]]
    examples += [f"{n} (unknown)" for n in sorted(surplus)[:3]]
    if not strict and wrong and all(map(adaptable_part, wrong)):
        mend = (
            "To train on from it with other classes or kernels set MODEL.KNET.FINETUNE adapt; or "
            f"else change {_keys(wrong, _SHAPES)}"
        )
    elif {_is_semantic(weights.state), _is_semantic(names)} == {True, False}:
        mend = (
            "One is of a semantic model, the other of an instance or panoptic one: see "
            "MODEL.KNET.KERNEL_HEAD"
        )
    elif strict and not any(n.startswith("heads.") for n in weights.state):
        mend = "The file has no heads of K-Net, only a backbone: name a whole K-Net checkpoint"
    else:
        keys = _keys(wrong, _SHAPES) or _keys([*sorted(missing), *sorted(surplus)], _PRESENCE)
        mend = f"Use the config it was trained with; what differs is {keys or 'MODEL'}"
    raise ValueError(
        f"{name}: checkpoint of another model: {len(missing) + len(wrong)} of {len(names)} weights "
        f"do not fit and {len(surplus)} are unknown, such as {'; '.join(examples)}. It was read as "
        f"{weights.kind}. {mend}"
    )


def describe(misfits: Misfits, weights: Weights, total: int) -> str:
    """What became of the weights, in a line; `total` is the number of the model's."""
    missing, surplus = misfits.missing, misfits.surplus
    left_out = [f"{count} {reason}" for reason, count in weights.left_out.items() if count]
    if surplus:
        left_out.append(f"{len(surplus)} that the model lacks ({_parts(surplus)})")
    text = f"{weights.kind}: {total - len(missing)} of the model's {total} weights set"
    text += f"; left out: {', '.join(left_out)}" if left_out else "; nothing left out"
    if missing:
        text += f"; freshly initialised: {len(missing)} ({_parts(missing)})"
    return text


def _stage(name: str) -> str | None:
    """The stage of a backbone that a weight belongs to, such as `backbone.res4`."""
    found = _STAGE.match(name)
    return None if found is None else found[0][:-1].replace("_", ".")


def _keys(names: Iterable[str], table: Iterable[tuple[str, str]]) -> str:
    """The config keys that a table has for names, three at most."""
    keys: dict[str, None] = {}
    for name in names:
        keys.update(dict.fromkeys([key for pattern, key in table if re.match(pattern, name)][:1]))
    return ", ".join(list(keys)[:3])


def _is_semantic(names: Collection[str]) -> bool | None:
    """None without heads."""
    if "heads.kernel_head.classifier.weight" in names:
        return True
    return False if "heads.kernel_head.seg_predictor.weight" in names else None


def _parts(names: Iterable[str]) -> str:
    """The parts that weights belong to, most frequent first."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    most = [part for part, _ in parts.most_common(6)]
    return ", ".join(most) + (" …" if len(parts) > len(most) else "")
