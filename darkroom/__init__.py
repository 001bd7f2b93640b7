"""Darkroom from outside: the command line, and a client for its service. Imports neither torch nor training."""
