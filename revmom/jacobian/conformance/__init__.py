"""A conformance kit for bijections: anybody's, not only this library's.

`check_bijection` draws points and gathers the comparisons: `transforms` runs
the functions under jit and vmap, `flat` makes them functions of vectors with
dense references, `comparisons` holds one against the other, and
`change_of_measure` measures volumes without any derivative.
"""
