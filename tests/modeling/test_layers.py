import pytest
import torch

from knet.modeling.grouping import gather_features
from knet.modeling.layers import at_least_float32


@pytest.mark.parametrize(
    "given, expected",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bool, torch.float32),
    ],
)
def test_sums_are_taken_in_float32_or_wider(given, expected):
    x = torch.ones(1, 2, 3, 3).to(given)
    assert at_least_float32(x).dtype == expected
    features, areas = gather_features(x, torch.ones(1, 4, 3, 3, dtype=torch.bool))
    assert features.dtype == areas.dtype == expected
