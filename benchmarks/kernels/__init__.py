"""The sections of `benchmarks/gpu.py`: each yields one row a measurement, as plain numbers with units in the names."""
