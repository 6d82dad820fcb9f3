"""JPEG files as bytes. No torch and no lmdb here. In reading order:

tile.py          re-codes a file without loss, so that its tiles can be found
markers.py       the headers of a file
scans.py         reads all kinds of scans, as tokens of one scan
entropy.py       reads and writes the bits of a scan
coefficients.py  reads files with several scans
huffman.py       tables for reading and writing, and what a token is
jit.py           how these are compiled
index.py         the tile index: where each tile begins
crop.py          cuts a box out of a tiled file; the result is a smaller JPEG
glue.py          the bits that join the slices of a crop
"""
