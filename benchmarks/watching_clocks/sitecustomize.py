"""Clocks in the processes of a run that is measured by `benchmarks.watching`: CPU time of what watches, by its thread.

Python imports this by its name at every start, where its folder is on PYTHONPATH. It lays clocks around methods of
modules when those are imported, and writes what they say into the folder that CLOCKS names, one file per process.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

CLOCKED = {
    "penstock.deploy.exporter": {"exporter": ("Exporter.__init__", "Gauges.set")},
    "penstock.services.tracking.feed": {"trackers": ("Feed._try",)},
    "penstock.services.lanes": {"lanes": ("LanesLog.write",)},
}
"""Module → what is watched by → where its CPU time goes. What an exporter's source takes is measured, too."""
EVERY = 1.0
"""Seconds between two writings."""

_spent: Counter[str] = Counter()
_lock = threading.Lock()
_written = 0.0


def clocked(label, function):
    """`function` with its thread's CPU time added to `label`."""

    @functools.wraps(function)
    def timed(*args, **kwargs):
        began = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            _add(label, time.thread_time() - began)

    return timed


def _add(label, seconds):
    global _written  # noqa: PLW0603
    with _lock:
        _spent[label] += seconds
        if time.monotonic() - _written < EVERY:
            return
        _written = time.monotonic()
        path = Path(os.environ["CLOCKS"]) / f"{os.getpid()}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"at": time.time(), **_spent}))
        fresh.replace(path)


def lay(module):
    """Clocks around what is named of a module."""
    for label, places in CLOCKED[module.__name__].items():
        for place in places:
            kind, method = place.split(".")
            owner = getattr(module, kind)
            function = getattr(owner, method)
            wrapped = sourced(label, function) if method == "__init__" else clocked(label, function)
            setattr(owner, method, wrapped)


def sourced(label, begin):
    """An exporter's `__init__`, whose source is clocked."""

    @functools.wraps(begin)
    def init(self, export, source, **labels):
        begin(self, export, clocked(label, source), **labels)

    return init


class Finder(importlib.abc.MetaPathFinder):
    """Finds the named modules as the others do, and lays clocks in them."""

    def find_spec(self, name, path=None, target=None):
        if name not in CLOCKED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            lay(module)

        spec.loader.exec_module = exec_module
        return spec


if "CLOCKS" in os.environ:
    sys.meta_path.insert(0, Finder())
