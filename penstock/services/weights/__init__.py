"""Versioned weights on their way from the learner to the samplers: manifests, checksums, transports."""
