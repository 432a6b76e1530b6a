"""What a network does to signals and gradients, measured layer by layer."""
