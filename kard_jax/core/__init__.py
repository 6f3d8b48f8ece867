"""The machinery under the method: files, configuration, partitioning, training, decoding."""
