"""Penstock: asynchronous actor-learner reinforcement learning for language models."""
