"""Files that make a folder when they are unpickled or run, in every form in which somebody might load them."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any


class Trap:
    """A folder that is not there, until something has run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)

    @property
    def sprung(self) -> bool:
        return self.path.exists()


def forms(trap: Trap) -> dict[str, bytes]:
    """Name of the form → the file."""
    import numpy as np
    import torch

    made: dict[str, bytes] = {"pickle": pickle.dumps(trap), "old pickle": pickle.dumps(trap, 0)}
    for name, new in (("torch", True), ("old torch", False)):
        buffer = io.BytesIO()
        torch.save({"module": trap, "updates": trap}, buffer, _use_new_zipfile_serialization=new)
        made[name] = buffer.getvalue()
    array = io.BytesIO()
    np.save(array, np.array([trap], dtype=object), allow_pickle=True)
    made["numpy"] = array.getvalue()
    made["yaml"] = f"!!python/object/apply:os.mkdir ['{trap.path}']\n".encode()
    made["yaml in a key"] = f"name: !!python/object/apply:os.mkdir ['{trap.path}']\n".encode()
    made["python"] = f"import os\nos.mkdir({str(trap.path)!r})\nROW = 1\n".encode()
    made["json"] = f'{{"py/reduce": [{{"py/type": "os.mkdir"}}, ["{trap.path}"]], "__reduce__": "os.mkdir"}}\n'.encode()
    return made


NAMES = ("pickle", "old pickle", "torch", "old torch", "numpy", "yaml", "yaml in a key", "python", "json")
