"""Kernel head, rounds and what they do with pixels: shapes, published initialisation, gradients."""

import math

import pytest
import torch

from knet.modeling.grouping import gather_features, hard_groups, soft_groups
from knet.modeling.kernels import KernelHead, KernelRounds, UpdateRound
from knet.modeling.positions import SinePositionEncoding
from knet.modeling.semantic import FCNDecoder, PixelClassifier, SemanticHeads


def make_head(stuff=3, kernels=6, dim=64):
    return KernelHead(
        hidden_dim=dim, num_kernels=kernels, num_thing_classes=5, num_stuff_classes=stuff,
        norm_groups=8, conv_std=0.01, class_prior=0.01,
    )  # fmt: skip


def make_round(classes=8, dim=64):
    return UpdateRound(dim=dim, num_heads=4, ffn_dim=128, num_classes=classes)


def test_position_encoding_by_hand():
    encoding = SinePositionEncoding(4)(torch.zeros(1, 4, 2, 3))
    y, x = 2 * math.pi * 2 / (2 + 1e-6), 2 * math.pi * 1 / (3 + 1e-6)
    expected = torch.tensor([math.sin(y), math.cos(y), math.sin(x), math.cos(x)])
    torch.testing.assert_close(encoding[:, 1, 0], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        SinePositionEncoding(6)


def test_kernel_head_joins_stuff_behind_things():
    head = make_head()
    out = head(torch.randn(2, 64, 6, 5), torch.randn(2, 64, 6, 5))
    assert out.kernels.shape == (2, 9, 64)
    assert out.masks.shape == (2, 9, 6, 5)
    assert out.seg_logits.shape == (2, 8, 6, 5)
    assert torch.equal(out.masks[:, 6:], out.seg_logits[:, 5:])
    rows = head.seg_predictor.weight.flatten(1)[5:]
    assert torch.equal(out.kernels[1, 6:], rows)
    instance = make_head(stuff=0)(torch.randn(1, 64, 6, 5), torch.randn(1, 64, 6, 5))
    assert instance.kernels.shape == (1, 6, 64)


def test_published_initialisation():
    head = make_head(kernels=200)
    assert head.init_kernels.weight.std().item() == pytest.approx(1, abs=0.03)
    assert head.seg_predictor.weight.std().item() == pytest.approx(0.01, abs=0.002)
    assert head.localise.conv.weight.std().item() == pytest.approx(0.01, abs=0.001)
    assert head.seg_predictor.bias.sigmoid().tolist() == pytest.approx([0.01] * 8)
    update = make_round()
    assert update.class_predictor.bias.sigmoid().tolist() == pytest.approx([0.01] * 8)
    for name, parameter in update.named_parameters():
        if parameter.dim() > 1:  # Xavier uniform: variance 2 / (fan in + fan out)
            expected = math.sqrt(2 / sum(parameter.shape))
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


def test_gradient_reaches_features_but_not_the_masks_that_gathered():
    x = torch.randn(2, 64, 6, 5, requires_grad=True)
    masks = torch.randn(2, 9, 6, 5, requires_grad=True)
    kernels = torch.randn(2, 9, 64, requires_grad=True)
    out = make_round()(x, kernels, masks)
    assert out.class_logits.shape == (2, 9, 8)
    assert out.masks.shape == masks.shape and out.kernels.shape == kernels.shape
    (out.masks.sum() + out.class_logits.sum()).backward()
    assert masks.grad is None
    assert x.grad.abs().sum() > 0 and kernels.grad.abs().sum() > 0


def test_rounds_chain_and_share_nothing():
    rounds = KernelRounds(make_round() for _ in range(3))
    x, kernels, masks = torch.randn(1, 64, 4, 4), torch.randn(1, 9, 64), torch.randn(1, 9, 4, 4)
    outputs = rounds(x, kernels, masks)
    by_hand = rounds[1](x, outputs[0].kernels, outputs[0].masks)
    torch.testing.assert_close(outputs[1].masks, by_hand.masks)
    storages = [p.data_ptr() for p in rounds.parameters()]
    assert len(storages) == len(set(storages))


def make_semantic_round(updater_dim=None, grouping=soft_groups):
    return UpdateRound(
        dim=64, num_heads=4, ffn_dim=128, num_classes=None, grouping=grouping,
        updater_dim=updater_dim, xavier=False,
    )  # fmt: skip


def test_narrow_updater_takes_kernels_in_parts():
    update = make_semantic_round(updater_dim=16)
    assert update.updater.out_proj.weight.shape == (16, 16)
    x, kernels, masks = torch.randn(2, 64, 6, 5), torch.randn(2, 9, 64), torch.randn(2, 9, 6, 5)
    out = update(x, kernels, masks)
    assert out.class_logits is None

    groups, _ = gather_features(update.feature_transform(x.movedim(1, 3)).movedim(3, 1),
                                masks.softmax(1))  # fmt: skip
    parts = zip(groups.split(16, dim=2), kernels.split(16, dim=2))
    joined = torch.cat([update.updater(g, k) for g, k in parts], dim=2)
    torch.testing.assert_close(out.kernels, update.interaction(joined), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grouping, passes", [(soft_groups, True), (hard_groups, False)])
def test_only_soft_groups_pass_a_gradient_to_the_masks(grouping, passes):
    masks = torch.randn(1, 9, 6, 5, requires_grad=True)
    update = make_semantic_round(grouping=grouping)
    update(torch.randn(1, 64, 6, 5), torch.randn(1, 9, 64), masks).masks.square().sum().backward()
    assert (masks.grad is not None and masks.grad.abs().sum() > 0) == passes


def test_semantic_rounds_keep_default_initialisation():
    torch.manual_seed(5)
    update = make_semantic_round()
    # PyTorch's linear layer: uniform within 1 / sqrt(fan in), variance a third of its square
    for layer in (update.updater.out_proj, update.interaction.ffn[0], update.mask_predictor):
        expected = math.sqrt(1 / 3 / layer.in_features)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)


def make_semantic_heads(auxiliary=True):
    def classifier(width, **kwargs):
        body = FCNDecoder(in_channels=[width], channels=64, norm=torch.nn.BatchNorm2d, **kwargs)
        return PixelClassifier(body, channels=64, num_classes=5, dropout=0.0)

    return SemanticHeads(
        kernel_head=classifier(32),
        rounds=KernelRounds(make_semantic_round() for _ in range(2)),
        auxiliary=classifier(16, num_convs=1, concat_input=False) if auxiliary else None,
        auxiliary_index=0,
    )


def test_classifier_rows_are_the_first_kernels():
    heads = make_semantic_heads().eval()
    torch.nn.init.normal_(heads.kernel_head.classifier.bias)
    features = [torch.randn(3, 16, 12, 10), torch.randn(3, 32, 6, 5)]
    initial, rounds = heads(features)
    weight, bias = heads.kernel_head.classifier.weight, heads.kernel_head.classifier.bias
    assert torch.equal(initial.kernels, weight.flatten(1).expand(3, 5, 64))
    logits = torch.einsum("kc,bchw->bkhw", weight[:, :, 0, 0], initial.features)
    torch.testing.assert_close(initial.masks, logits + bias.view(-1, 1, 1))
    torch.testing.assert_close(initial.features, heads.kernel_head.decoder(features))
    assert [r.masks.shape for r in rounds] == [(3, 5, 6, 5)] * 2
    by_hand = heads.rounds[0](initial.features, initial.kernels, initial.masks)
    torch.testing.assert_close(rounds[0].masks, by_hand.masks)


def test_auxiliary_classifier_works_in_training_only():
    features = [torch.randn(2, 16, 12, 10), torch.randn(2, 32, 6, 5)]
    heads = make_semantic_heads()
    initial, _ = heads.train()(features)
    assert initial.auxiliary.shape == (2, 5, 12, 10)  # of the finer map
    assert heads.eval()(features)[0].auxiliary is None
    assert make_semantic_heads(auxiliary=False).train()(features)[0].auxiliary is None
