"""JPEG files as bytes. No torch and no lmdb here. In reading order:

index.py         the tile index: where each tile begins
locate.py        indexes a file as it is
index_writer.py  writes an index
markers.py       the headers of a file
jit.py           how functions are compiled
memory.py        memory by address, in compiled code

And for files that have to be written anew, or shall be:

tile.py          re-codes a file without loss, so that its tiles can be cut out
scans.py         reads all kinds of scans, as tokens of one scan
entropy.py       reads and writes the bits of a scan
coefficients.py  reads files with several scans
huffman.py       tables for reading and writing, and what a token is
crop.py          cuts a box out of a tiled file; the result is a smaller JPEG
glue.py          the bits that join the slices of a crop
"""
