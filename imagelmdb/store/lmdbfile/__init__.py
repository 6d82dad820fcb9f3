"""One LMDB file, read with liblmdb and without it.

environment.py  opens a file with liblmdb and reads values by key
datafile.py     given a path: checks the file before liblmdb opens it, and says where its values are
pages.py        the pages of a file as numpy arrays, and the B-trees in them
"""
