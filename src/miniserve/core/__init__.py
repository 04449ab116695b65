"""The engine's heart, without torch: requests, KV blocks, the scheduler, and the loop that drives an executor."""
