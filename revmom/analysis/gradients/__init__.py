"""What a network does to signals and gradients, measured layer by layer.

`gradient_flow` measures the layers of a network, which is a `layer_stack` or a
Flax module (`module_layers`); `recurrent_flow` measures the steps of a
recurrence.  Both take their figures from `norms`.  `layer_spectrum` and
`module_spectra` give the singular values (`spectrum`) of Jacobians
(`linear_maps`), `curvature` those of Hessians.  `find_gain` and
`coordinate_check` look at networks of several gains and widths, and `text`
makes tables of reports.
"""
