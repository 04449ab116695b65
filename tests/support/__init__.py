"""Helpers shared by tests: tiny models made on the spot, and files broken on purpose."""
