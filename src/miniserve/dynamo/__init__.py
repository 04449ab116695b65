"""A worker of NVIDIA Dynamo over the engine: `python -m miniserve.dynamo`."""

HOW_TO_INSTALL = "pip install 'miniserve[dynamo]' and then pip install --no-deps ai-dynamo, of the same version"
