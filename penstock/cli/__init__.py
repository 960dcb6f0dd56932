"""The command line: a thin face, no logic."""
