"""Training: a compact mixed-precision trainer of the same decoder that serves."""
