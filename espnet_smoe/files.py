"""Tables of ``<id> <value>`` lines, and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = [
    "MODEL_FILE",
    "DataDirError",
    "read_table",
    "some_of",
    "write_atomically",
    "write_table",
]

MODEL_FILE = "valid.acc.ave.pth"
"""The checkpoint of an experiment that is used unless another is named: the mean of
the best epochs, as stage 11 leaves it."""


class DataDirError(ValueError):
    """A data directory is missing, incomplete or contradicts itself."""


def read_table(path: Path) -> dict[str, str]:
    """Read ``<id> <value>`` lines; the value may hold blanks.

    Raises:
        DataDirError: the file is missing or not UTF-8, a line has no value, an id
            comes twice.
    """
    if not path.is_file():
        raise DataDirError(f"{path} is missing")
    table: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                parts = line.strip().split(maxsplit=1)
                if len(parts) != 2:
                    raise DataDirError(
                        f"{path}:{number}: expected '<id> <value>', got "
                        f"{line.strip()!r}"
                    )
                if parts[0] in table:
                    raise DataDirError(f"{path}:{number}: id {parts[0]!r} comes twice")
                table[parts[0]] = parts[1]
    except UnicodeDecodeError as error:
        raise DataDirError(f"{path}: expected UTF-8 text: {error}") from None
    return table


def some_of(ids: Sequence[str], limit: int = 5) -> str:
    """The first few of many ids, for a message.

    >>> some_of(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(ids[:limit]) + more


def write_table(path: Path, table: Mapping[str, object]) -> None:
    """Write ``<id> <value>`` lines sorted by id; an empty table writes no file."""
    if table:
        lines = (f"{key} {table[key]}\n" for key in sorted(table))
        path.write_text("".join(lines), encoding="utf-8")


class write_atomically:
    """Context of a temporary folder that becomes ``path`` when all went well.

    What stood there before is replaced as a whole, and stays as it was if the run
    fails or is killed. A folder cannot be replaced in one step, so a kill between the
    two renames at the end leaves no ``path``, and the old folder as ``.<name>.old``;
    the next run for this path first puts it back. Where ``path`` is a link to a
    folder, that folder is replaced and the link stays.
    """

    def __init__(self, path: Path) -> None:
        path = Path(path)
        self.path = path.resolve() if path.is_symlink() else path
        self.temporary = self.path.with_name(f".{self.path.name}.tmp")
        self.old = self.path.with_name(f".{self.path.name}.old")

    def __enter__(self) -> Path:
        self._restore()
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            # deleting a large folder takes time: never under its final name
            shutil.rmtree(self.old, ignore_errors=True)
            if self.path.exists():
                os.replace(self.path, self.old)
            try:
                os.replace(self.temporary, self.path)
            finally:
                self._restore()
            shutil.rmtree(self.old, ignore_errors=True)
        else:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _restore(self) -> None:
        """Put the old folder back where a replacement did not come to its end."""
        if self.old.exists() and not self.path.exists():
            os.replace(self.old, self.path)
