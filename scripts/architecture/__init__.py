"""Parts of scripts/architecture_costs.py."""
