"""Guards: conditions on metrics, and what is done to the run when they hold."""
