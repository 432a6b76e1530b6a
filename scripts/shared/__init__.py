"""What several programs use: settings, files, checkpoints, data, training."""
