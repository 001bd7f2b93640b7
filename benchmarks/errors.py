"""What stops a benchmark: one line for people."""


class BenchmarkError(Exception):
    """Something that is needed is missing, or a process did not do what it is measured for."""
