"""Serves an artifact: python -m service."""

__version__ = "0.1.0"
