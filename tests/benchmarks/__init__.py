"""Benchmarks: choreo beside its peers, as ratios within one run on one machine."""
