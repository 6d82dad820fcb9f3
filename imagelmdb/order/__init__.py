"""Which image comes when, and which crop of it is taken. Pure functions in numpy, without state.

In reading order:

rng.py       random numbers and permutations that can be computed at any position
blocks.py    a shuffle that suits slow disks
sampler.py   the records of each rank at each step, and which node reads which shard
plan.py      the crop and the flip of each record
"""
