"""The equation of a step: what is changed in turn can be undone in turn.

An optimizer's step, and anything else of the form

    z_k' = rho_k z_k + phi_k(g, z_1', ..., z_{k-1}'),    0 < rho_k <= 1,

is an exact bijection on a grid: see `revmom.steps.equations`.  Nothing here
knows what the quantities z_k are.
"""
