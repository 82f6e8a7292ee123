"""HOW THINGS ARE MEASURED: constants fitted to measurements, and the measurement of this machine."""
