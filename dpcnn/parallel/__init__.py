"""The split of the work, the ranks, and the exchange of gradients between them."""
