"""Generating: the prompt stream, the vLLM wrapper, the worker, evaluation. Imports only `services`."""
