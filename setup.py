"""Packaging of paddleq."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Read, not imported: importing paddleq needs Paddle, building it does not.
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "paddleq" / "__init__.py").read_text(),
                    re.MULTILINE).group(1)

setup(
    name="paddleq",
    version=VERSION,
    description="Quantization for PaddlePaddle models: QAT, PTQ and export that computes the same",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["paddleq", "paddleq.*"]),
    package_data={"paddleq": ["py.typed"]},
    entry_points={"console_scripts": ["paddleq = paddleq.cli.main:main"]},
    python_requires=">=3.8",
    # Paddle is not here: its CPU and GPU wheels exclude each other. See the extras.
    install_requires=["numpy", "pyyaml", "tqdm", "protobuf", "safetensors", "click>=8.0"],
    extras_require={
        "cpu": ["paddlepaddle>=2.6.2", "setuptools"],
        "gpu": ["paddlepaddle-gpu>=2.6.2", "setuptools"],
        # paddle2onnx: the release that works beside any Paddle. onnxruntime: the first that
        # computes what to_onnx writes in integers, as far as it was tried.
        "onnx": ["paddle2onnx==1.3.1", "onnx>=1.16", "onnxruntime>=1.17"],
        "openvino": ["openvino"],
        "viz": ["visualdl", "matplotlib"],
        "dev": ["pytest", "pytest-xdist", "hypothesis", "scikit-learn", "ruff", "rich",
                "openvino", "selenium", "visualdl"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
