"""Benchmarks of the engine: fixed workloads, each figure beside this machine's measured limits."""
