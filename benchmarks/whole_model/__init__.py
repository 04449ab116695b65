"""The sections of `gpu_model.py`: whole decode steps, prefill and a workload on one GPU."""
