"""LMDB's own pages: open, check, walk."""
