"""Which image comes when, and which crop of it is taken. Pure functions in numpy, without state.

sampler.py   the records of each rank at each step       plan.py     the crop and the flip of each record
blocks.py    a shuffle that suits slow disks             shards.py   which node reads which shard
rng.py       random numbers and permutations that can be computed at any position
"""
