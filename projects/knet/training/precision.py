"""The number type of the forward pass, by what the device computes quickly."""

from __future__ import annotations

import logging
import os
import platform

import torch
from detectron2.config import CfgNode

__all__ = ["autocast_dtype", "computes_in_bfloat16"]

logger = logging.getLogger(__name__)

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# instruction sets of ONEDNN_MAX_CPU_ISA that have bfloat16 products
_ISA_WITH_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type of mixed precision that the config asks for, or None for float32.

    Raises:
        ValueError: float16 on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name, device = cfg.SOLVER.AMP.DTYPE, torch.device(cfg.MODEL.DEVICE)
    if name == "auto":
        dtype, reason = _fastest(device)
        chosen = "float32" if dtype is None else str(dtype).rpartition(".")[2]
        logger.info("SOLVER.AMP.DTYPE auto: %s, since %s", chosen, reason)
        return dtype
    if device.type == "cpu" and name == "float16":
        raise ValueError("SOLVER.AMP.DTYPE float16 needs a GPU: use auto or bfloat16 on a CPU")
    if device.type == "cpu" and not computes_in_bfloat16():
        logger.warning(
            "SOLVER.AMP.DTYPE bfloat16: this processor has no instructions for it; a step was "
            "nearly twice as slow as in float32, measured on one Xeon; auto chooses what is fast"
        )
    return _DTYPES[name]


def _fastest(device: torch.device) -> tuple[torch.dtype | None, str]:
    """Type and reason."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes in it"
        return torch.float16, "the GPU is too old for bfloat16"
    if device.type == "cpu" and computes_in_bfloat16():
        return torch.bfloat16, "the processor has instructions for it"
    if device.type == "cpu":
        return None, "the processor has no instructions for bfloat16"
    return None, f"nothing is known of bfloat16 on {device.type}"


def computes_in_bfloat16() -> bool:
    """Whether this machine's processor multiplies in bfloat16.

    It is what oneDNN may use: the environment variable ONEDNN_MAX_CPU_ISA can forbid it.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        onednn = torch.backends.mkldnn.is_available()
        return onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # the latter after torch 2.5
    has = any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    return has and any(part in limit.upper() for part in _ISA_WITH_BFLOAT16)
