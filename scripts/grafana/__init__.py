"""Grafana dashboards, from a description that names metrics as a run does."""
