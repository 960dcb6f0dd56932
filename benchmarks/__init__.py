"""Measurements that are run by hand, each a module of its own: `python -m benchmarks.NAME --help`."""
