"""A tiny trained experiment, made once per session through the command lines.

Use it by ``pytest_plugins = ["fixtures_exp"]`` in a test module.
"""

from __future__ import annotations

import pytest
from tiny_experiment import Experiment, write_conf, write_dump

from espnet_smoe.bin import smoe_tokens, smoe_train


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Stages 5, 10 and 11 on noise: two epochs of three batches."""
    root = tmp_path_factory.mktemp("experiment")
    made = Experiment(
        conf=write_conf(root / "train.yaml"),
        train=root / "dump" / "train",
        dev=root / "dump" / "dev",
        tokens=root / "tokens",
        stats=root / "stats",
        exp=root / "exp",
    )
    write_dump(made.train, drop=((2, "st_de"), (5, "asr")))
    write_dump(made.dev, seed=1)
    command = [
        "--train_dir", str(made.train), "--train_config", str(made.conf),
        "--nbpe", "45", "--out_dir", str(made.tokens),
    ]  # fmt: skip
    assert smoe_tokens.main(command) == 0
    command = made.train_command(made.stats)
    del command[8:10]  # --stats_dir
    assert smoe_train.main([*command, "--collect_stats", "true"]) == 0
    assert smoe_train.main(made.train_command(made.exp)) == 0
    return made
