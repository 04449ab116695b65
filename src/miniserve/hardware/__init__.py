"""What there is to know about devices: this machine's, so far."""
