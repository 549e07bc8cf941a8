"""What the tiny experiment of ``fixtures_exp`` is made of."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import kaldiio
import numpy as np
import yaml

from espnet_smoe.datadir import Utterance, write_datadir

CONF = {
    "guides": {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de"]},
    "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 256, "n_mels": 20},
    "normalize": "utterance_mvn",
    "encoder": "smoe_conformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 1,
        "cnn_module_kernel": 3,
        "experts": {"axis": "bandwidth", "split_at": 0.5},
    },
    "decoder": "smoe_transformer",
    "decoder_conf": {
        "attention_heads": 2,
        "linear_units": 16,
        "num_blocks": 1,
        "experts": {"axis": "task"},
    },
    "model": "smoe",
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
    "num_workers": 0,
    "batch_type": "numel",
    "batch_bins": 40000,
    "max_epoch": 2,
    "num_iters_per_epoch": 3,
    "optim": "adam",
    "optim_conf": {"lr": 0.01},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 2},
    "log_interval": 1,
    "best_model_criterion": [["valid", "acc", "max"]],
    "keep_nbest_models": 2,
    "use_matplotlib": False,
    "use_tensorboard": False,
}

ENGLISH = (
    "the cat sees a dog", "a dog sees the cat", "the dog runs", "a cat runs",
    "the cat and the dog run", "a dog and a cat see the dogs",
    "the dogs see a cat", "cats run and dogs see",
)  # fmt: skip
GERMAN = (
    "die katze sieht einen hund", "ein hund sieht die katze", "der hund rennt",
    "eine katze rennt", "die katze und der hund rennen",
    "ein hund und eine katze sehen die hunde", "die hunde sehen eine katze",
    "katzen rennen und hunde sehen",
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """Folders that the stages made."""

    conf: Path
    train: Path
    dev: Path
    tokens: Path
    stats: Path
    exp: Path

    def train_command(self, exp: Path, conf: Path | None = None) -> list[str]:
        """Arguments of stage 11 with another experiment folder or YAML."""
        return [
            "--config", str(conf or self.conf), "--train_dir", str(self.train),
            "--valid_dir", str(self.dev), "--token_dir", str(self.tokens),
            "--stats_dir", str(self.stats), "--output_dir", str(exp),
        ]  # fmt: skip

    def copy(self, target: Path) -> Path:
        """A copy of the trained experiment folder."""
        return Path(shutil.copytree(self.exp, target, symlinks=True))


def write_dump(
    folder: Path, seed: int = 0, drop: tuple[tuple[int, str], ...] = ()
) -> None:
    """Dumped noise: eight utterances of 0.5 to 0.9 s, every second one narrowband.

    Args:
        drop: (number of the utterance, task whose reference it lacks).
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    names = [f"u{i}" for i in range(len(ENGLISH))]
    audio = {
        name: rng.integers(-9000, 9000, 8000 + 900 * ((3 * i) % 8)).astype(np.int16)
        for i, name in enumerate(names)
    }
    ark = folder / "data_wav.ark"
    kaldiio.save_ark(
        str(ark), {n: (16000, a) for n, a in audio.items()}, scp=str(folder / "scp")
    )
    places = dict(line.split() for line in (folder / "scp").read_text().splitlines())
    (folder / "scp").unlink()
    utterances = []
    for i, name in enumerate(names):
        texts = {"asr": ENGLISH[i], "st_de": GERMAN[i]}
        for number, task in drop:
            if number == i:
                del texts[task]
        utterances.append(
            Utterance(
                id=name,
                audio=places[name],
                speaker=f"s{i % 3}",
                fs=8000 if i % 2 else 16000,
                num_samples=len(audio[name]),
                guides={"bandwidth": "nb" if i % 2 else "wb"},
                texts=texts,
            )
        )
    datadir = folder.with_name(f"{folder.name}.d")
    write_datadir(datadir, utterances)
    for file in datadir.iterdir():
        file.rename(folder / file.name)
    datadir.rmdir()


def write_conf(path: Path, **changes: object) -> Path:
    """The tiny YAML with some top-level keys changed."""
    path.write_text(yaml.safe_dump({**CONF, **changes}, sort_keys=False))
    return path
