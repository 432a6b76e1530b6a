"""Parts of scripts/early_stopping.py: Duvenaud, Maclaurin & Adams (2016)."""
