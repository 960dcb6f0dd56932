"""Training: the algorithms, the DeepSpeed engine, the feed, the loop. Imports only `services`."""
