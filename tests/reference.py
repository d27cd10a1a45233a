"""K-Net as published, written out: the forward pass and the results.

Plain torch functions over a dictionary of parameters, which have the names that `KNetHeads` and
`SemanticHeads` give them. Nothing is rearranged to save time or memory: every round transforms the
whole feature map, and every mask is resized in three steps. The tests compare the real code with
it, and `benchmarks/benchmark.py` measures against it. Sections are those of the paper (Zhang et
al., K-Net, NeurIPS 2021); what the paper leaves open is as in the authors' release.

B images, N thing kernels, S stuff kernels, C channels, T thing classes, K = T + S classes.
Training is in `reference_training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = Mapping[str, Tensor]


class Setup(NamedTuple):
    """Sizes that the parameters do not tell."""

    num_thing_classes: int
    num_stuff_classes: int
    norm_groups: int = 32
    num_heads: int = 8
    num_rounds: int = 3


class Start(NamedTuple):
    """Features (B, C, H, W), kernels (B, N + S, C), their masks and the semantic logits."""

    features: Tensor
    kernels: Tensor
    masks: Tensor
    seg_logits: Tensor


class Round(NamedTuple):
    """Class logits (B, N + S, K) or None, mask logits (B, N + S, H, W), kernels (B, N + S, C)."""

    class_logits: Tensor | None
    masks: Tensor
    kernels: Tensor


def double(maps: Tensor) -> Tensor:
    """Bilinear enlargement by 2; here and everywhere without aligned corners."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


# ---- layers


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def layer_norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def conv_norm_relu(p: Parameters, name: str, x: Tensor, groups: int, stride: int = 1) -> Tensor:
    """Convolution without bias, GroupNorm, ReLU."""
    weight = p[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    return F.relu(F.group_norm(x, groups, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"]))


# ---- section 3.4: the feature maps


def position_encoding(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """(channels, H, W): y in the first half of the channels, x in the second; padding counts."""
    channel = torch.arange(channels // 2, dtype=torch.float32, device=device)
    wavelength = 10000 ** (2 * (channel // 2) / (channels // 2))
    waves = []
    for length in (height, width):
        coordinate = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angle = coordinate / (length + 1e-6) * 2 * math.pi / wavelength[:, None]
        # even channels carry the sine, odd ones the cosine
        waves.append(torch.stack([angle[0::2].sin(), angle[1::2].cos()], dim=1).flatten(0, 1))
    y, x = waves
    return torch.cat([y[:, :, None].expand(-1, -1, width), x[:, None, :].expand(-1, height, -1)])


def neck(p: Parameters, setup: Setup, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Four levels (B, C, H_i, W_i), strides 4 to 32 -> two maps at stride 8.

    Stride 4 is halved by a convolution; the others are convolved, then doubled until they fit.
    """
    *finer, last = pyramid
    last = last + position_encoding(*last.shape[1:], device=last.device)
    total = None
    for level, x in enumerate([*finer, last]):
        for i in range(max(level, 1)):
            stride = 2 if level == 0 else 1
            x = conv_norm_relu(p, f"neck.levels.{level}.{i}", x, setup.norm_groups, stride)
            if i < level - 1:
                x = double(x)
        total = x if total is None else total + x
    return (
        conv_norm_relu(p, "neck.localise", total, setup.norm_groups),
        conv_norm_relu(p, "neck.classify", total, setup.norm_groups),
    )


# ---- sections 3.2 and 3.4: the first kernels


def kernel_head(p: Parameters, setup: Setup, localising: Tensor, classifying: Tensor) -> Start:
    """First masks by convolution with learned kernels; stuff is read off the semantic classifier.

    A thing kernel starts as the learned kernel plus the sum of the features under its mask.
    """
    localising = conv_norm_relu(p, "kernel_head.localise", localising, setup.norm_groups)
    classifying = conv_norm_relu(p, "kernel_head.classify", classifying, setup.norm_groups)
    seg_logits = F.conv2d(
        classifying, p["kernel_head.seg_predictor.weight"], p["kernel_head.seg_predictor.bias"]
    )
    learned = p["kernel_head.init_kernels.weight"]
    masks = F.conv2d(localising, learned)
    features = localising + classifying
    kernels = learned.flatten(1) + group_features(masks, features)
    if setup.num_stuff_classes:
        stuff = p["kernel_head.seg_predictor.weight"].flatten(1)[setup.num_thing_classes :]
        kernels = torch.cat([kernels, stuff.expand(len(kernels), -1, -1)], dim=1)
        masks = torch.cat([masks, seg_logits[:, setup.num_thing_classes :]], dim=1)
    return Start(features, kernels, masks, seg_logits)


def group_features(masks: Tensor, features: Tensor) -> Tensor:
    """Eq. 4: sum of the features of the pixels that each mask selects; no gradient to the mask."""
    selected = (masks.sigmoid() > 0.5).float()
    return torch.einsum("bnhw,bchw->bnc", selected, features)


# ---- section 3.3: one update round


def update_kernels(p: Parameters, name: str, groups: Tensor, kernels: Tensor) -> Tensor:
    """Eq. 5 to 7, adaptive kernel update: two gates weigh group features and kernels."""
    group_in, group_out = linear(p, f"{name}.group_proj", groups).chunk(2, dim=-1)
    kernel_in, kernel_out = linear(p, f"{name}.kernel_proj", kernels).chunk(2, dim=-1)
    product = group_in * kernel_in
    gates = [
        layer_norm(p, f"{name}.{which}_norm", linear(p, f"{name}.{which}", product)).sigmoid()
        for which in ("group_gate", "kernel_gate")
    ]
    updated = gates[0] * layer_norm(p, f"{name}.group_norm", group_out)
    updated = updated + gates[1] * layer_norm(p, f"{name}.kernel_norm", kernel_out)
    return F.relu(layer_norm(p, f"{name}.out_norm", linear(p, f"{name}.out_proj", updated)))


def interact(p: Parameters, name: str, kernels: Tensor, num_heads: int) -> Tensor:
    """Self-attention over all kernels of an image, then a feed-forward net; both residual."""
    batch, count, width = kernels.shape
    projected = F.linear(
        kernels, p[f"{name}.attention.in_proj_weight"], p[f"{name}.attention.in_proj_bias"]
    )
    queries, keys, values = (
        x.view(batch, count, num_heads, -1).transpose(1, 2) for x in projected.chunk(3, dim=-1)
    )
    weights = (queries @ keys.transpose(2, 3) / math.sqrt(width // num_heads)).softmax(-1)
    attended = (weights @ values).transpose(1, 2).reshape(batch, count, width)
    attended = linear(p, f"{name}.attention.out_proj", attended)
    kernels = layer_norm(p, f"{name}.attention_norm", kernels + attended)
    hidden = F.relu(linear(p, f"{name}.ffn.0", kernels))
    return layer_norm(p, f"{name}.ffn_norm", kernels + linear(p, f"{name}.ffn.2", hidden))


def branch(p: Parameters, name: str, kernels: Tensor) -> Tensor:
    return F.relu(layer_norm(p, f"{name}.1", linear(p, f"{name}.0", kernels)))


def update_round(
    p: Parameters,
    name: str,
    setup: Setup,
    features: Tensor,
    kernels: Tensor,
    masks: Tensor,
    *,
    soft: bool = False,
) -> Round:
    """Gather, update, interact, classify, segment.

    `soft`, for semantic models: the masks are weights by a softmax over the kernels, and pass
    gradients. There, kernels wider than the updater are updated in parts that share its weights.
    """
    transform = p[f"{name}.feature_transform.weight"][:, :, None, None]
    x = F.conv2d(features, transform, p[f"{name}.feature_transform.bias"])
    if soft:
        groups = torch.einsum("bnhw,bchw->bnc", masks.softmax(dim=1), x)
    else:
        groups = group_features(masks, x)
    shape = (*kernels.shape[:2], -1, p[f"{name}.updater.out_proj.weight"].shape[1])
    kernels = update_kernels(p, f"{name}.updater", groups.view(shape), kernels.reshape(shape))
    kernels = interact(p, f"{name}.interaction", kernels.flatten(2), setup.num_heads)
    class_logits = None
    if f"{name}.class_predictor.weight" in p:
        class_logits = linear(
            p, f"{name}.class_predictor", branch(p, f"{name}.class_branch", kernels)
        )
    mask_kernels = linear(p, f"{name}.mask_predictor", branch(p, f"{name}.mask_branch", kernels))
    # each image is convolved with its own kernels
    new = [F.conv2d(x[b : b + 1], mask_kernels[b, :, :, None, None]) for b in range(len(x))]
    return Round(class_logits, torch.cat(new), kernels)


def update_rounds(p: Parameters, setup: Setup, start: Start, *, soft: bool = False) -> list[Round]:
    """All rounds, each from the kernels and masks of the one before and the same features."""
    kernels, masks = start.kernels, start.masks
    rounds = []
    for s in range(setup.num_rounds):
        rounds.append(
            update_round(p, f"rounds.{s}", setup, start.features, kernels, masks, soft=soft)
        )
        kernels, masks = rounds[-1].kernels, rounds[-1].masks
    return rounds


def heads(p: Parameters, setup: Setup, pyramid: Sequence[Tensor]) -> tuple[Start, list[Round]]:
    """Everything behind the backbone of instance and panoptic models."""
    start = kernel_head(p, setup, *neck(p, setup, pyramid))
    return start, update_rounds(p, setup, start)


def semantic_rounds(
    p: Parameters, setup: Setup, features: Tensor, logits: Tensor
) -> tuple[Start, list[Round]]:
    """Section 3.4: the rows of a pixel classifier are the first kernels, one a class."""
    kernels = p["kernel_head.classifier.weight"].flatten(1).expand(len(features), -1, -1)
    start = Start(features, kernels, logits, logits)
    return start, update_rounds(p, setup, start, soft=True)


# ---- section 3.5 and appendix: results


def resize_masks(
    masks: Tensor,
    padded_size: Sequence[int],
    image_size: Sequence[int],
    output_size: Sequence[int],
) -> Tensor:
    """Logits (n, h, w) of the last round -> probabilities (n, H, W) at the output size.

    Doubled, squashed, resized to the padded input, cropped to the image, resized to the output.
    """
    p = double(masks[None]).sigmoid()
    p = F.interpolate(p, size=tuple(padded_size), mode="bilinear", align_corners=False)
    p = p[:, :, : image_size[0], : image_size[1]]
    return F.interpolate(p, size=tuple(output_size), mode="bilinear", align_corners=False)[0]


def instances(
    class_scores: Tensor, masks: Tensor, sizes: Sequence[Sequence[int]], *, top_k: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of kernel and class of one image; no suppression, no rescoring.

    Args:
        class_scores: (N, T) probabilities.
        masks: (N, h, w) logits.
        sizes: padded, image and output size, (height, width) each.

    Returns:
        Scores (k,), labels (k,), boolean masks (k, H, W).
    """
    scores, index = class_scores.flatten().topk(min(top_k, class_scores.numel()))
    num_classes = class_scores.shape[1]
    probabilities = resize_masks(masks[index // num_classes], *sizes)
    return scores, index % num_classes, probabilities > 0.5


def panoptic(
    class_scores: Tensor, masks: Tensor, setup: Setup, sizes: Sequence[Sequence[int]]
) -> tuple[Tensor, list[dict]]:
    """Panoptic fusion of one image: pixels go to the highest score times probability.

    Ids count from 1 in descending score and 0 is void, where the release writes label + 1000 times
    a running index.

    Args:
        class_scores: (N + S, K) probabilities.
        masks: (N + S, h, w) logits.
        setup: T and S.
        sizes: padded, image and output size, (height, width) each.

    Returns:
        Id map (H, W) int32; `id`, `label`, `score` and `area` of each segment.
    """
    things = len(class_scores) - setup.num_stuff_classes
    scores, labels = class_scores[:things, : setup.num_thing_classes].max(dim=1)
    stuff_labels = torch.arange(setup.num_stuff_classes, device=masks.device)
    scores = torch.cat([scores, class_scores[things:, setup.num_thing_classes :].diagonal()])
    labels = torch.cat([labels, stuff_labels + setup.num_thing_classes])

    probabilities = resize_masks(masks, *sizes)
    winner = (scores[:, None, None] * probabilities).argmax(dim=0)
    id_map = torch.zeros(winner.shape, dtype=torch.int32, device=masks.device)
    segments: list[dict] = []
    for k in scores.argsort(descending=True).tolist():
        label = int(labels[k])
        if label < setup.num_thing_classes and scores[k] < 0.3:
            continue
        won = winner == k
        area, own_area = int(won.sum()), int((probabilities[k] >= 0.5).sum())
        if area == 0 or own_area == 0 or area / own_area < 0.6:
            continue
        id_map[won] = len(segments) + 1
        segments.append(
            {"id": len(segments) + 1, "label": label, "score": float(scores[k]), "area": area}
        )
    return id_map, segments


def semantic(logits: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Semantic models: logits (K, h, w) of one image -> probabilities (K, H, W)."""
    padded_size, image_size, output_size = sizes
    x = F.interpolate(logits[None], size=tuple(padded_size), mode="bilinear", align_corners=False)
    x = x[:, :, : image_size[0], : image_size[1]]
    x = F.interpolate(x, size=tuple(output_size), mode="bilinear", align_corners=False)
    return x.softmax(dim=1)[0]
