"""Fixtures of the learner's tests."""

from __future__ import annotations

import pytest
from learner_parts import free_address


@pytest.fixture(scope="session")
def team():
    """The torch process group of this process, with one rank; DeepSpeed needs one."""
    import torch

    from penstock.learner import ranks

    torch.set_num_threads(1)
    return ranks.join(0, 1, free_address(), 60.0)
