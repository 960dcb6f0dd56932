"""Judging completions: rules, reference log-probabilities, composition. Imports only `services`."""
