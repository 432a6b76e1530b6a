"""What a function costs: arithmetic, memory, sequential rounds and context.

`cost` traces a function and gathers: `counting` the arithmetic, `reverse_pass`
what differentiation keeps, `rounds` what must wait for what, and `context` the
inputs that an output depends on.  `trip_counts` tells how often loops run.
Rounds and context come from `dataflow`, which runs a program on `facts` by
the rules of `compact`, `products` and `transfer`, and its loops by
`iteration`.  `scaling` fits power laws to costs.
"""
