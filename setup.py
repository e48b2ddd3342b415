"""Packaging: metadata, dependencies, the `dpt-zoo` command, and the data files that a wheel carries."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DATA = ("configs", "weights_manifest.json", "weights_manifest.schema.json")


class BuildWithData(build_py):
    """Copy the data files from beside the package into it: see `dpt_zoo.manifest.records.data_path`."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "dpt_zoo" / "_data"
        target.mkdir(parents=True, exist_ok=True)
        for name in DATA:
            if (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True, ignore=ignore)
            else:
                shutil.copy2(ROOT / name, target / name)


HUB = ["huggingface_hub>=1.27"]  # weights at hf://..., and `dpt-zoo publish`
TORCH = [
    *HUB,
    "torch>=2.10",  # earlier versions can be made to run code by a weights_only=True load (CVE-2026-24747)
    "torchvision>=0.25",
    "timm>=1.0.20",
    "mmdet>=3.3,<4",
    "mmengine>=0.10.7,<1",
    "mmcv-lite>=2.1,<2.2",  # MMDetection 3.3 accepts no later mmcv
    "faster-coco-eval>=1.6.4",
    "matplotlib>=3.8",
    "supervision>=0.31.2",
    "defusedxml>=0.7",  # Pascal VOC annotations
    "psutil>=5.9.4",  # the memory that training may use
]
OPENVINO = ["openvino>=2025.2"]
EXPORT = [*TORCH, *OPENVINO, "onnx>=1.18", "onnxscript>=0.7.1"]
QUANTIZE = [*EXPORT, "nncf>=3"]
APP = ["gradio>=6.31,<7"]
LARGE = ["tifffile>=2024.8"]  # windows of large images
SERVE = ["fastapi>=0.120", "uvicorn>=0.40", "prometheus_client>=0.23", "python-multipart>=0.0.22"]
WEBDATASET = ["webdataset>=1"]  # shards of ImageNet
VIDEO = ["av>=17.1"]  # earlier versions crash on some files
TRACK = [*VIDEO, "trackers>=2.6,<3"]
SCALE = ["pyarrow>=20", "fsspec>=2024.6"]  # data sets of any size; object storage also needs s3fs, gcsfs or adlfs
RAY = [*SCALE, "ray[default]>=2.40"]
DEMO = [*TORCH, "scikit-learn>=1.5"]  # contains the handwritten digits of the digit scenes
DATASETS = ["datasets>=4"]  # those of Hugging Face
ALL = [*QUANTIZE, *APP, *LARGE, *SERVE, *TRACK, *WEBDATASET, *RAY, *DEMO, *DATASETS]
LOGGERS = [*TORCH, "tensorboard", "wandb>=0.19", "mlflow-skinny>=3", "alembic>=1.13", "clearml>=1.16"]
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.5",
    "mkdocstrings[python]>=1",
    "pymdown-extensions<12; python_version < '3.11'",  # the last mkdocstrings for Python 3.10 fails with later ones
]

setup(
    name="dpt-zoo",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "dpt_zoo/_version.py").read_text()).group(1),
    description="The twelve COCO detectors of DPT (Deformable Patch-based Transformer), ready to run today",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["object detection", "instance segmentation", "vision transformer", "model zoo", "COCO"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["dpt_zoo", "dpt_zoo.*"]),
    package_data={"dpt_zoo": ["py.typed", "**/*.j2"], "dpt_zoo.app": ["examples/*.png", "stream.js"]},
    cmdclass={"build_py": BuildWithData},
    python_requires=">=3.10",
    install_requires=[  # what listing models, fetching weights, and detecting with an exported model need
        "numpy>=2",
        "pillow>=11.3",
        "opencv-python-headless>=4.13",
        "pycocotools>=2.0.8",
        "onnxruntime>=1.22",
        "safetensors>=0.4.5",
        "jinja2>=3.1.2",  # model cards and reports
        "pyyaml>=6",  # YOLO data sets
        # Downloads of weights: docs/weights.md.
        "filelock>=3.12",
        "requests>=2.32",
        "rich>=13.9.4",
        "urllib3>=2.6",  # earlier versions can be made to decompress a chunk without bound
    ],
    extras_require={
        "torch": TORCH,
        "export": EXPORT,
        "quantize": QUANTIZE,
        "openvino": OPENVINO,
        "hub": HUB,
        "app": APP,
        "large": LARGE,
        "serve": SERVE,
        "video": VIDEO,
        "track": TRACK,
        "webdataset": [*TORCH, *WEBDATASET],
        "scale": SCALE,
        "ray": RAY,
        "demo": DEMO,
        "datasets": DATASETS,
        "all": ALL,
        "loggers": LOGGERS,
        "docs": DOCS,
        "test": [
            *ALL,
            *LOGGERS,
            *DOCS,
            "build",
            "hypothesis",
            "import-linter",
            "duckdb",
            "flask",
            "flask-cors",
            "ipykernel",
            "jsonschema",
            "moto[s3]",
            "mypy",
            "nbclient",
            "pandas",
            "playwright",
            "pytest<9.2",  # pytest-xdist 3.8 ignores groups with later versions
            "pytest-xdist",
            "ruff",
            "s3fs",
            "schemathesis",
            "setuptools>=77",
            "torchmetrics",
            "trustme",
            "types-PyYAML",
            "types-defusedxml",
            "types-jsonschema",
            "types-requests",
        ],
    },
    entry_points={"console_scripts": ["dpt-zoo = dpt_zoo.cli:main"]},
)
