"""What theory says of signals and gradients, without measuring a network.

`variance_maps` and `edge_of_chaos` follow wide random networks, by the
`quadrature` of Gaussian numbers; `residual_variance` and `batch_norm` have
formulas for these layers, `bounds` what must hold for any.  `initializers`
draw weights accordingly.  `convnet_notation` counts the parameters of
convolutional networks that are written as lists.
"""
