"""JPEG files as bytes. No torch and no lmdb here.

tile.py     re-codes a file without loss, so that its tiles can be found
index.py    the tile index: where each tile begins
crop.py     cuts a box out of a tiled file; the result is a smaller JPEG
glue.py     the bits that join the slices of a crop

markers.py (headers), scans.py, entropy.py, coefficients.py, huffman.py and tables.py do the work of tile.py.
"""
