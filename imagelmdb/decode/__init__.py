"""From a record, a box and a size to pixels."""
