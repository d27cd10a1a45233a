"""Mixed precision by what the device can do."""

import logging

import knet  # noqa: F401  (before Detectron2)

# isort: split
import pytest
import torch

from knet.config import get_cfg_from_file
from knet.training import precision
from knet.training.precision import autocast_dtype, computes_in_bfloat16


@pytest.fixture
def cfg():
    cfg = get_cfg_from_file("configs/nuclei/instance.yaml", ["MODEL.DEVICE", "cpu"])
    assert cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "auto"
    return cfg


@pytest.mark.parametrize(
    "on_cpu, on_gpu, device, dtype, reason",
    [
        (True, None, "cpu", torch.bfloat16, "the processor has instructions for it"),
        (False, None, "cpu", None, "float32, since the processor has no instructions"),
        (None, True, "cuda", torch.bfloat16, "the GPU computes in it"),
        (None, False, "cuda:0", torch.float16, "too old for bfloat16"),
        (None, None, "mps", None, "nothing is known"),
    ],
)
def test_auto_is_what_is_fast(cfg, monkeypatch, caplog, on_cpu, on_gpu, device, dtype, reason):
    cfg.MODEL.DEVICE = device
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda: on_cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: on_gpu)
    with caplog.at_level(logging.INFO):
        assert autocast_dtype(cfg) is dtype
    (record,) = caplog.records
    assert reason in record.getMessage()


def test_kernels_of_an_older_processor_have_no_bfloat16(monkeypatch):
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    for isa, expected in [("", True), ("AVX2", False), ("AVX512_CORE", False),
                          ("avx512_core_bf16", True), ("AVX512_CORE_AMX", True)]:  # fmt: skip
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        assert computes_in_bfloat16() is expected, isa


def test_named_types(cfg, monkeypatch, caplog):
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda: False)
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    assert autocast_dtype(cfg) is torch.bfloat16
    assert "has no instructions for it" in caplog.text
    cfg.SOLVER.AMP.DTYPE = "float16"
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        autocast_dtype(cfg)
    cfg.MODEL.DEVICE = "cuda"
    assert autocast_dtype(cfg) is torch.float16
    cfg.SOLVER.AMP.ENABLED = False
    assert autocast_dtype(cfg) is None
