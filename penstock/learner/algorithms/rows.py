"""The rows of the table of algorithms, each with its paper's defaults. A new algorithm is a new row.

Where the objective's ratio is π/π_prox, a row also weights by π_prox/μ: that is Penstock's own addition, because
another engine than the learner's draws the tokens, and papers take the two to be one.
"""

from __future__ import annotations

from penstock.learner.algorithms.group_rows import GROUP_ROWS
from penstock.learner.algorithms.value_rows import DECOUPLED_PPO, VALUE_ROWS

ROWS = (*VALUE_ROWS, *GROUP_ROWS, DECOUPLED_PPO)
