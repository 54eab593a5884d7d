import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+?)"', (ROOT / "moe/__init__.py").read_text(encoding="utf-8"), re.M)


class BuildWithYamls(build_py):
    """The yamls go into the package as moe/yamls, for `moe yaml` and `moe demo`; here they stay in one place."""

    def run(self):
        super().run()
        if self.editable_mode:  # which reads them from that place
            return
        folder = Path(self.build_lib, "moe/yamls")
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        shutil.copytree(ROOT / "yamls", folder, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="moe-trainer",
    version=VERSION[1],
    description="Pretrain Mixture-of-Experts language models with Composer and Streaming: exact, resumable, simple.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["moe", "moe.*"]),
    package_data={"moe.runs": ["page.css", "page.js"]},
    cmdclass={"build_py": BuildWithYamls},
    install_requires=[
        "torch>=2.7",
        "mosaicml==0.32.1",
        "mosaicml-streaming==0.13.0",
        "transformers>=4.57",
        "datasets>=3.6",
        "wandb>=0.19",
        "omegaconf==2.4.0",
        "tensorboard>=2.16",
        "pyarrow>=17",
        "boto3>=1.34",
        "xxhash>=3",
        "safetensors>=0.4.3",
        "matplotlib>=3.8",
        "packaging>=22",
        "psutil>=5.9",
        "rich>=13",
    ],
    extras_require={
        "convert": ["gigatoken==0.10.0", "fastokens==0.3.5"],
        "ray": ["ray>=2.40,<3"],
        "eval": ["lm-eval[hf]==0.4.13"],
        "dev": [
            "moto[server]>=5",
            "pytest>=8",
            "setuptools>=77",
            "pytest-xdist>=3.7",
            "ray>=2.40,<3",
            "hypothesis>=6.100",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "types-tqdm",
            "types-PyYAML",
            "kubernetes-validate>=1.37",
        ],
    },
    entry_points={"console_scripts": ["moe=moe.cli.main:main"]},
)
