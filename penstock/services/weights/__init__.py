"""Versioned weights and their transports."""
