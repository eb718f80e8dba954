"""Files that are replaced whole, whatever happens midway."""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: What the system calls a disk or a quota without space.
FULL = {errno.ENOSPC, errno.EDQUOT}


def replace_file(path: Path, text: str) -> None:
    """Writes `text` so that a reader finds the old file or the new one, also after a power cut.

    For one writer at a time: two need a lock of their own. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is on the disk only then
    finally:
        os.close(folder)
