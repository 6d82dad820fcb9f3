"""Databases of older tools, read as they are.

formats.py recognises the tool and makes a LegacyStore (database.py) with a loader for its values. The loaders
are arrow.py, packed.py (msgpack), pickled.py and protobuf.py. A loader takes a value of the database and
returns what it contains, or raises one of the errors in database.DAMAGE. It never runs code that a value
contains, and its memory is in proportion to the size of the value.
"""
