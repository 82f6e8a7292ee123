"""What this machine can do, measured: bandwidth, latency, products, attention, starts of kernels, disk, network."""
