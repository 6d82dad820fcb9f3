"""Classes of older tools, for code that uses them: the same names and arguments, on our stores.

torchlmdb.py     DatasetLMDB (cache.py is a part of it)
torchrecord.py   Writer
"""
