"""What theory says of signals and gradients, without a network."""
