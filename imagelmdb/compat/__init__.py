"""Classes of older tools, for code that uses them: the same names and arguments, on our stores.

torchlmdb.py     DatasetLMDB (cache.py and temporary.py are parts of it)
torchrecord.py   Writer
"""
