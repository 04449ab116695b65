"""From a model's name to files on this disk: aliases, paths and the Hugging Face Hub. Torch-free throughout."""
