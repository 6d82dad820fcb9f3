"""Databases of older tools, read as they are.

formats.py recognises the tool and makes a LegacyFile (database.py) with a loader for its values. The loaders
are in arrow.py, pickled.py, protobuf.py, and for msgpack in formats.py. A loader takes a value and returns
what it contains, or raises one of the errors in errors.DAMAGE. It never runs code that a value contains,
and its memory is in proportion to the size of the value.
"""
