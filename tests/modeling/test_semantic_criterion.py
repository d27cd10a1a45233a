"""The losses of semantic models."""

import pytest
import torch
import torch.nn.functional as F

from knet.modeling.outputs import InitialKernels, RoundOutput
from knet.modeling.semantic_criterion import SemanticCriterion


def outputs(size=(2, 3, 4, 6), rounds=2, auxiliary=True):
    """Initial kernels and rounds with random logits that ask for gradients."""

    def logits():
        return torch.randn(size, requires_grad=True)

    masks = logits()
    initial = InitialKernels(None, None, masks, masks, logits() if auxiliary else None)
    return initial, [RoundOutput(None, logits(), None) for _ in range(rounds)]


def test_ignored_pixels_count_in_the_divisor():
    initial, rounds = outputs(auxiliary=False)
    labels = torch.randint(0, 3, (2, 4, 6))
    labels[0, :2] = 255
    losses = SemanticCriterion(weight=2.0)(initial, rounds, labels)
    log_p = initial.masks.log_softmax(1)
    total = sum(
        -log_p[b, labels[b, y, x], y, x]
        for b in range(2) for y in range(4) for x in range(6) if labels[b, y, x] != 255
    )  # fmt: skip
    torch.testing.assert_close(losses["loss_init_seg"], 2 * total / (2 * 4 * 6))


def test_names_weights_and_enlargement():
    initial, rounds = outputs()
    labels = torch.randint(0, 3, (2, 8, 12))
    losses = SemanticCriterion(weight=0.5, auxiliary_weight=0.3)(initial, rounds, labels)
    logits = {
        "loss_init_seg": (0.5, initial.masks),
        "loss_round1_seg": (0.5, rounds[0].masks),
        "loss_round2_seg": (0.5, rounds[1].masks),
        "loss_auxiliary_seg": (0.3, initial.auxiliary),
    }
    assert set(losses) == set(logits)
    for name, (weight, small) in logits.items():
        large = F.interpolate(small, size=(8, 12), mode="bilinear")
        torch.testing.assert_close(losses[name], weight * F.cross_entropy(large, labels))
    assert "loss_auxiliary_seg" not in SemanticCriterion()(*outputs(auxiliary=False), labels)


def test_nothing_but_ignored_pixels():
    initial, rounds = outputs()
    labels = torch.full((2, 4, 6), 255)
    losses = SemanticCriterion()(initial, rounds, labels)
    assert all(v.item() == 0 for v in losses.values())
    sum(losses.values()).backward()
    for logits in (initial.masks, initial.auxiliary, *(r.masks for r in rounds)):
        assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_taken_in_float32(dtype):
    logits = (500 * torch.randn(1, 3, 4, 6)).to(dtype)
    initial = InitialKernels(None, None, logits, logits, None)
    labels = torch.randint(0, 3, (1, 4, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SemanticCriterion()(initial, [], labels)["loss_init_seg"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels))
