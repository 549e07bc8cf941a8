"""Tables of ``<id> <value>`` lines, and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

__all__ = ["DataDirError", "read_table", "write_atomically", "write_table"]


class DataDirError(ValueError):
    """A data directory is missing, incomplete or contradicts itself."""


def read_table(path: Path) -> dict[str, str]:
    """Read ``<id> <value>`` lines; the value may hold blanks.

    Raises:
        DataDirError: the file is missing, a line has no value, an id comes twice.
    """
    if not path.is_file():
        raise DataDirError(f"{path} is missing")
    table: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            parts = line.strip().split(maxsplit=1)
            if len(parts) != 2:
                raise DataDirError(
                    f"{path}:{number}: expected '<id> <value>', got {line.strip()!r}"
                )
            if parts[0] in table:
                raise DataDirError(f"{path}:{number}: id {parts[0]!r} comes twice")
            table[parts[0]] = parts[1]
    return table


def write_table(path: Path, table: Mapping[str, object]) -> None:
    """Write ``<id> <value>`` lines sorted by id; an empty table writes no file."""
    if table:
        lines = (f"{key} {table[key]}\n" for key in sorted(table))
        path.write_text("".join(lines), encoding="utf-8")


class write_atomically:
    """Context of a temporary folder that becomes ``path`` when all went well.

    A killed or failed run leaves ``path`` as it was; what stood there before is
    replaced as a whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            # deleting a large folder takes time: never under its final name
            old = self.path.with_name(f".{self.path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if self.path.exists():
                os.replace(self.path, old)
            os.replace(self.temporary, self.path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            shutil.rmtree(self.temporary, ignore_errors=True)
