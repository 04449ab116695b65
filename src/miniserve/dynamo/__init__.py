"""A worker of NVIDIA Dynamo over the engine: `python -m miniserve.dynamo`."""
