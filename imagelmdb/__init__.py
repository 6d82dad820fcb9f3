"""Train ImageNet from LMDB: losslessly tiled JPEGs, crops sliced out of the bytes, runs exact to the step."""

__version__ = "0.1.0"
