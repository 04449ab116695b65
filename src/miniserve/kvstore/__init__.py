"""Where KV blocks go when they leave the device: host memory, disk, a peer."""
