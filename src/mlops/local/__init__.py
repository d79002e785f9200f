"""The embedded way: the whole platform as ordinary processes on one machine, without Docker."""
