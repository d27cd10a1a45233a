"""Activation checkpointing changes memory, not results."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from knet.accel import accelerate_as_configured
from knet.accel.recompute import recompute, recompute_stages


def _step(cfg, parts):
    from detectron2.data import DatasetCatalog

    from knet.data.loader import seed_everything
    from knet.data.mapper import KNetDatasetMapper

    seed_everything(0)  # weights and augmentation
    cfg = cfg.clone()
    cfg.MODEL.KNET.ACCEL.RECOMPUTE = parts
    model = accelerate_as_configured(build_model(cfg), cfg).train()
    mapper = KNetDatasetMapper(cfg, is_train=True)
    batch = [mapper(record) for record in DatasetCatalog.get("tiny_val")[:2]]
    torch.manual_seed(1)
    losses = model(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    statistics = {n: b for n, b in model.named_buffers() if "running" in n or "tracked" in n}
    return losses, gradients, statistics, set(model.state_dict())


@pytest.mark.parametrize("parts", [("rounds",), ("backbone", "rounds")])
def test_losses_gradients_and_statistics_stay(tiny_cfg, parts):
    plain, recomputed = _step(tiny_cfg, ()), _step(tiny_cfg, parts)
    for before, after in zip(plain[:3], recomputed[:3]):
        assert before.keys() == after.keys() and before
        for name in before:
            torch.testing.assert_close(after[name], before[name], msg=name)
    assert plain[3] == recomputed[3]


def test_nothing_is_kept_for_the_backward_pass():
    module = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(torch.randn(64, 8, requires_grad=True))
        plain = len(kept)
        kept.clear()
        recompute(module)
        module(torch.randn(64, 8, requires_grad=True))
    assert plain >= 8 and sum(tensor.numel() > 0 for tensor in kept) <= 1


def test_what_cannot_be_recomputed_is_refused():
    with pytest.raises(ValueError, match=r"a Linear cannot be .* MODEL\.SWIN\.GRADIENT_CHECK"):
        recompute_stages(nn.Linear(2, 2))
