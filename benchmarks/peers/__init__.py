"""Servers to compare with, each one small file, as its project's documentation would show it."""
