"""`bench serve`: load on an OpenAI-compatible endpoint, and what its users would have seen."""
