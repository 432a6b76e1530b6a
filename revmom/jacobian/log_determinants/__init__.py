"""Log-determinants of functions, exact wherever their structure allows.

A function meets these modules in this order.  `log_det` traces it and asks
`plan` for a plan: `cuts` divides its program into square maps, `arrays` divides
these into whole arrays, and `sparsity` with `components` into elements.  The
parts become blocks: those of `blocks`, or where a rule for whole arrays is
known those of `linear`, `loops`, `rearrangement` and `declared`.  Each has a
`determinant`.  A function is refused in `log_det`, where its arguments or its
result do not fit, and in `plan`, where a block is too large or unknown.
"""
