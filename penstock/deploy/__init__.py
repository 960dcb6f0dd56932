"""The composition root: run files, Ray actors, placement, supervision. The only place that imports Ray."""
