"""The command that runs a deployment on one machine: what it refuses."""

import pytest

from miniserve.dynamo.local import local
from miniserve.errors import InvalidRequestError


def test_nobody_to_answer_is_refused():
    with pytest.raises(InvalidRequestError, match="nobody would answer"):
        local(prefill=1)
