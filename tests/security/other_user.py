"""What another user of the machine gets to see: a function run in a copy of this process that has become `nobody`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(look: Callable[[], Any]) -> Any:
    """What `look` returns there, or the name of the exception that it ends with. It may import nothing: the stranger
    may not read where our libraries are."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                found = look()
            except BaseException as error:  # noqa: BLE001  that it is refused is what is looked for
                found = type(error).__name__
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into, as a home on a shared machine often is; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="seen-by-all-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
