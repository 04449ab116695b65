"""What is asked of an engine, when, and how well it was served: torch-free, for real and simulated engines alike."""
