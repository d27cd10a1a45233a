"""Initial kernels: learned thing kernels, the semantic branch and the stuff kernels it yields."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from knet.modeling.grouping import gather_features, hard_groups
from knet.modeling.layers import ConvNormReLU, group_norm, init_convs
from knet.modeling.places import PlaceEncoding


class InitialKernels(NamedTuple):
    """What the update rounds start from.

    N thing kernels, then S stuff kernels; in a semantic model one kernel a class.

    Attributes:
        features: (B, C, H, W), the map that every round gathers from and convolves.
        kernels: (B, N + S, C).
        masks: (B, N + S, H, W) logits.
        seg_logits: (B, K, H, W) of the semantic branch, K = thing plus stuff classes.
        auxiliary: (B, K, h, w) logits of a semantic model's auxiliary head, in training.
    """

    features: Tensor
    kernels: Tensor
    masks: Tensor
    seg_logits: Tensor
    auxiliary: Tensor | None = None


class KernelHead(nn.Module):
    """Convolves learned kernels over the localising map (K-Net §3.2, §3.4).

    Args:
        hidden_dim: width C.
        num_kernels: N learned thing kernels; 0 in a model of stuff alone.
        num_thing_classes, num_stuff_classes: T and S; things come first in the class order.
        norm_groups: of every GroupNorm.
        conv_std: standard deviation of initial convolution weights.
        class_prior: initial probability of every class of the semantic branch.
        places: is added to the features, and the kernels start on places of their own; None, as
            published: kernels are drawn at random.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_kernels: int,
        num_thing_classes: int,
        num_stuff_classes: int,
        norm_groups: int,
        conv_std: float,
        class_prior: float,
        places: PlaceEncoding | None = None,
    ) -> None:
        super().__init__()
        self.num_kernels = num_kernels
        self.num_thing_classes = num_thing_classes
        self.num_stuff_classes = num_stuff_classes
        norm = group_norm(norm_groups)
        self.localise = ConvNormReLU(hidden_dim, hidden_dim, kernel_size=1, norm=norm)
        self.classify = ConvNormReLU(hidden_dim, hidden_dim, kernel_size=1, norm=norm)
        self.init_kernels = (
            nn.Conv2d(hidden_dim, num_kernels, 1, bias=False) if num_kernels else None
        )
        self.seg_predictor = nn.Conv2d(hidden_dim, num_thing_classes + num_stuff_classes, 1)
        self.places = places
        init_convs(self, conv_std)
        if self.init_kernels is not None:
            nn.init.normal_(self.init_kernels.weight)
            if places is not None:
                self.init_kernels.weight.data[..., 0, 0] = places.kernels(num_kernels)
        nn.init.constant_(self.seg_predictor.get_parameter("bias"), -math.log(1 / class_prior - 1))

    def forward(self, localising: Tensor, classifying: Tensor) -> InitialKernels:
        """Two maps (B, C, H, W) from the neck -> the first masks and kernels."""
        localising = self.localise(localising)
        if self.places is not None:
            localising = localising + self.places(localising)
        classifying = self.classify(classifying)
        features = localising + classifying
        seg_logits = self.seg_predictor(classifying)
        if self.init_kernels is None:
            masks = seg_logits[:, :0]
            kernels = features.new_zeros((features.shape[0], 0, features.shape[1]))
        else:
            masks = self.init_kernels(localising)
            groups, _ = gather_features(features, hard_groups(masks))
            kernels = self.init_kernels.weight.flatten(1) + groups
        if self.num_stuff_classes:
            # a stuff kernel is its class's row of the classifier; its bias is no part of it
            stuff = self.seg_predictor.weight.flatten(1)[self.num_thing_classes :]
            kernels = torch.cat([kernels, stuff.expand(kernels.shape[0], -1, -1)], dim=1)
            masks = torch.cat([masks, seg_logits[:, self.num_thing_classes :]], dim=1)
        return InitialKernels(features, kernels, masks, seg_logits)
