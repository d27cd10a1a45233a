"""A pixel decoder with its classifier, whose weights are the first kernels of semantic models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PixelClassifier(nn.Module):
    """Pixel decoder, dropout of whole channels, 1x1 classifier.

    Args:
        decoder: maps the backbone's features to one map of `channels`.
        channels: width C.
        num_classes: K.
        dropout: probability; 0 for none.
    """

    def __init__(
        self, decoder: nn.Module, *, channels: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for layer in decoder.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.get_parameter("bias"))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C_i, H_i, W_i) -> pixel features (B, C, H, W), class logits (B, K, H, W)."""
        pixels = self.decoder(features)
        return pixels, self.classifier(self.dropout(pixels))
