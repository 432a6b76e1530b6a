"""Parts of scripts/maclaurin2015.py: Maclaurin, Duvenaud & Adams (2015)."""
