"""Where a model comes from and whether it is still that one: a registry on disk, manifests, signatures, an audit log.

Torch-free, and of no use of the rest of the engine: what it says of a model holds before a byte of it is parsed.
"""
