"""From a store to batches: order and crops as pure functions, decoding, loaders."""
