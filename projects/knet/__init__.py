"""K-Net for Detectron2: segmentation by a small set of learned, updated kernels.

Importing ``knet`` registers the meta-architecture with Detectron2. Without Detectron2 the parts
that need torch alone stay importable, such as ``knet.modeling.kernels``,
``knet.modeling.losses`` and ``knet.modeling.panoptic``.
"""

from __future__ import annotations

import warnings

from knet.compat import apply_shims, detectron2_installed, require_detectron2

__version__ = "0.1.0"
__all__ = ["KNet", "add_knet_config"]

if detectron2_installed():
    with warnings.catch_warnings():
        # of decorators in Detectron2 and fvcore, for their authors
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated")
        apply_shims()  # before anything else imports detectron2

        from knet.config import add_knet_config
        from knet.modeling.knet import KNet
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            require_detectron2()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
