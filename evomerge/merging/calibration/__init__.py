"""What models do on a text: activations, Gram matrices and gradients, measured once and kept on disk.

The seam for data-aware merging. A statistic is one array per tensor of one model on one text. It depends on no
coefficient, so it belongs to what is prepared.
"""
