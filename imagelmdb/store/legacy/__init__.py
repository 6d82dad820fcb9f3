"""Databases written by older tools, read as they are; formats.py recognises them.

The loaders (arrow, packed, pickled, protobuf) take a value of the database and return what it says, or raise
one of the errors in store.DAMAGE: no code in a value runs, and memory stays in proportion to its size.
"""
