"""A small deployment: a toy model on a toy device, so that every number can be worked out by hand."""

import pytest

from miniserve.hardware.catalog import load_catalog
from miniserve.hardware.shape import Parallel, Precision, Shape
from miniserve.simulate.deployment import Deployment, efficiency_for

TOY = Shape(layers=4, hidden=256, heads=8, kv_heads=2, head_dim=32, intermediate=512, vocab=1000)


@pytest.fixture(scope="session")
def make():
    """`make(num_blocks=…, …)`: a deployment whose pool has so many blocks."""

    def deployment(num_blocks=None, hardware="h100", shape=TOY, tensor=1, weights="bf16", kv=None, **options):
        device = load_catalog().accelerator(hardware)
        made = Deployment(
            device, shape, Precision.of(weights, kv), Parallel(tensor=tensor), efficiency_for(device), **options
        )
        if num_blocks is not None or shape is TOY:
            made.__dict__["num_blocks"] = num_blocks or 5000  # a cached property; the toy would have millions
        return made

    return deployment
