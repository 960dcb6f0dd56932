"""The chaos run: kills the parts of a run at random, also at the worst moments, and checks the books after each kill.

`make chaos CHAOS_ARGS="--kills 200 --seed 0"`; docs/chaos.md says what it does and what it checks.
"""
