"""Measures the service beside stock LitServe, other servers and the bounds of the hardware: python -m benchmarks."""
