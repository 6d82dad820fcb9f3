"""Write a JPEG anew without loss, and cut smaller JPEGs out of it.

It is for files that cannot be indexed as they are, and for other decoders than ours: --recode. All else works
without it, and does not import it. In reading order:

tile.py          writes a file's coefficients anew, so that its tiles can be cut out
scans.py         reads all kinds of scans, as tokens of one scan
entropy.py       reads and writes the bits of a scan
coefficients.py  reads files with several scans
huffman.py       tables for reading and writing, and what a token is
crop.py          cuts a box out of a tiled file; the result is a smaller JPEG
glue.py          the bits that join the slices of a crop
"""
