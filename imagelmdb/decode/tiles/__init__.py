"""Our own decoder for crops of tiled JPEGs, in Python and numba.

decoder.py    TilesDecoder, a decoder like the others
crops.py      many crops in one compiled call
stored.py     where in a stored record the image and its tile index are
record.py     one crop: the steps below, a few rows of MCUs at a time
header.py     what the record's tile index and header say
entropy.py    from bits to coefficients
idct.py       from coefficients to samples
colour.py     from samples to RGB
resize.py     from RGB to the crop; on its own also for raw pixels, and after libjpeg
vectors.py    the vector instructions that all of these are made of
"""
