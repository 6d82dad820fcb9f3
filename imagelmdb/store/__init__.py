"""The LMDB store: format, reader, writer, sources. No torch here."""
