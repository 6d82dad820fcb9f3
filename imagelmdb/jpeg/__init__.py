"""JPEG as bytes: parse, tile losslessly, crop by slicing. No torch and no lmdb here."""
