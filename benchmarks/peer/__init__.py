"""The same two tasks by Penstock and by TRL's GRPOTrainer, on the same cores: `python -m benchmarks.peer`."""
