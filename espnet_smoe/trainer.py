"""The host's trainer, made safe against being killed while it saves.

The host writes ``checkpoint.pth`` and ``<epoch>epoch.pth`` in place, one after the
other. Killed in between, an experiment could not be resumed or, later, averaged.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.train.reporter import SubReporter
from espnet2.train.trainer import Trainer

from espnet_smoe.config import ConfigError
from espnet_smoe.moments import moments_follow
from espnet_smoe.progress import progress

__all__ = ["BACKUP", "SMoETrainer"]

BACKUP = "checkpoint.last.pth"
"""Copy of the last complete checkpoint, made before an epoch trains."""

logger = logging.getLogger(__name__)


class SMoETrainer(Trainer):
    """Keeps a copy of the last complete checkpoint and resumes from it if need be."""

    @classmethod
    def train_one_epoch(
        cls,
        model: torch.nn.Module,
        iterator: Iterable[tuple[list[str], dict[str, torch.Tensor]]],
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: Any,
        reporter: SubReporter,
        summary_writer: Any,
        options: Any,
        distributed_option: Any,
    ) -> bool:
        """Back up the checkpoint of the epoch before, then train as the host does.

        The host tells the time left once an epoch; here it comes every minute. Batches
        that no update follows (``accum_grad`` does not divide the epoch) are not
        learnt from; the host would add them to the next epoch's first update, which a
        resumed run could not. Optimiser state follows the late split where YAML asks
        for it.
        """
        epoch = f"epoch {reporter.get_epoch()}/{options.max_epoch}"
        for optimizer in optimizers:
            optimizer.zero_grad()
        if isinstance(iterator, Sized):
            if left := len(iterator) % options.accum_grad:
                logger.warning(
                    "the last %d of an epoch's %d batches are not learnt from: set "
                    "num_iters_per_epoch to a multiple of accum_grad %d",
                    left,
                    len(iterator),
                    options.accum_grad,
                )
            iterator = progress(iterator, len(iterator), epoch, log_every=60.0)
        if not distributed_option.distributed or distributed_option.dist_rank == 0:
            _back_up(Path(options.output_dir), reporter.get_epoch() - 1)
        with moments_follow(model, optimizers):
            return super().train_one_epoch(
                model=model,
                iterator=iterator,
                optimizers=optimizers,
                schedulers=schedulers,
                scaler=scaler,
                reporter=reporter,
                summary_writer=summary_writer,
                options=options,
                distributed_option=distributed_option,
            )

    @staticmethod
    def resume(
        checkpoint: str | Path,
        model: torch.nn.Module,
        reporter: Any,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: Any,
        ngpu: int = 0,
        strict: bool = True,
    ) -> None:
        """Load a checkpoint, or the one before if saving it was cut short.

        If the first epoch's was cut short, nothing is loaded: training starts anew.

        Raises:
            ConfigError: neither is complete, and more than one epoch was trained.
        """
        checkpoint = Path(checkpoint)
        if _saved_epoch(checkpoint) is None:
            backup = checkpoint.with_name(BACKUP)
            if not zipfile.is_zipfile(backup):
                if _last_epoch_file(checkpoint.parent) > 1:
                    raise ConfigError(
                        f"neither {checkpoint} nor {BACKUP} beside it is a complete "
                        "checkpoint; resume false trains from the beginning"
                    )
                logger.warning("%s is incomplete: training starts anew", checkpoint)
                return
            logger.warning("%s is incomplete: resuming from %s", checkpoint, backup)
            checkpoint = backup
        Trainer.resume(
            checkpoint=checkpoint,
            model=model,
            reporter=reporter,
            optimizers=optimizers,
            schedulers=schedulers,
            scaler=scaler,
            ngpu=ngpu,
            strict=strict,
        )


def _back_up(folder: Path, epoch: int) -> None:
    """Copy the checkpoint if it is the complete one of ``epoch`` (0 = none yet)."""
    checkpoint, backup = folder / "checkpoint.pth", folder / BACKUP
    if epoch == 0:
        backup.unlink(missing_ok=True)  # of an earlier run in this folder
    elif _saved_epoch(checkpoint) == epoch:
        temporary = backup.with_name(f".{backup.name}.tmp")
        shutil.copyfile(checkpoint, temporary)
        os.replace(temporary, backup)


def _saved_epoch(checkpoint: Path) -> int | None:
    """Epoch of a checkpoint; None if it, or the model file saved after it, is not
    complete. A file that torch wrote ends in a zip directory; it is not read whole."""
    if not zipfile.is_zipfile(checkpoint):
        return None
    states = safe_torch_load(checkpoint, map_location="cpu", mmap=True)
    epoch = states["reporter"]["epoch"]
    model = checkpoint.with_name(f"{epoch}epoch.pth")
    return epoch if zipfile.is_zipfile(model) else None


def _last_epoch_file(folder: Path) -> int:
    found = (re.fullmatch(r"(\d+)epoch\.pth", p.name) for p in folder.iterdir())
    return max((int(m[1]) for m in found if m), default=0)
