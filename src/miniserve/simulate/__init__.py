"""The same engine and scheduler on hardware from the catalogue, under a virtual clock. Torch-free."""
