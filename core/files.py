"""Files that are there whole or not at all."""

import os
from pathlib import Path

from distillzoo.core.errors import cannot


def write_whole(path: Path, text: str) -> None:
    """Write a text by way of another name, so that a kill or a full disk leaves the old file or none.

    Raises:
        UserError: the system refuses.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise cannot("write", path, error) from None
