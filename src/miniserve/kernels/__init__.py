"""The operators of a decoder. `reference` is the truth, in plain torch; faster backends are tested against it."""
