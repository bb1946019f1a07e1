"""How rows become batches: sampling, packing and padding."""
