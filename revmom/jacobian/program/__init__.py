"""Functions as lists of equations, and what is known of each primitive.

A function becomes a program in `equations`, by way of `control_flow`, which
reads JAX's calls, loops and branches.  `dependence` and `dead_code` say which
values matter to which; `primitives`, `constants` and `contractions` say how the
elements of an output meet those of an operand; `declarations` are what users
state about functions of their own, and `probes` the numbers at which such a
statement is tried.
"""
