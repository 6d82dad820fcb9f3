"""JPEG files as bytes. No torch and no lmdb here.

markers.py       the headers of a file
index.py         the tile index: where each tile begins
locate.py        indexes a file as it is
index_writer.py  writes an index
memory.py        memory by address, in compiled code
jit.py           how functions are compiled
recode/          writes a file anew without loss; cuts smaller JPEGs out of such files
"""
