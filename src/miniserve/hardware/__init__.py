"""What there is to know about devices, without torch: the catalogue, what a step costs, how long it should take."""
