"""How much the simulator does, beside a fixed piece of Python: what the machine does otherwise cancels out."""

import random
from itertools import islice

from miniserve.core.routing import KVAware
from miniserve.simulate.cluster import Cluster
from miniserve.workloads.presets import preset, with_turns
from support.yardstick import Yardstick


def test_thirty_requests_cost_as_much_as_some_ten_thousand_objects(make):
    """Measured: 23 times a thousand of them; without leaps 322."""
    deployment = make(num_blocks=2000)
    turns = [turn._replace(then=None) for turn in with_turns(preset("chat", random.Random(0)), 10)]
    arrivals = [turn._replace(at_s=0.02 * at) for at, turn in enumerate(islice(turns, 30))]
    cost = Yardstick(1000).measure(lambda: Cluster([deployment] * 2, router=KVAware()).run(iter(arrivals)), pairs=15)
    assert cost < 60
