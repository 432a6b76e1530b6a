"""What can't be differentiated says so, and names `revmom.train`."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import revmom

PARAMS = jnp.array([0.5, -1.0])
BATCHES = jnp.array([[0.25, 1.0], [-0.5, 0.75]])


def _loss(params, batch, scale=1.0):
  return scale * jnp.sum(jnp.cos(params - batch))


def _gradient(scale):
  return jax.grad(lambda params: _loss(params, BATCHES[0], scale))


def _init(scale):
  return (
    revmom.sgd(0.1, 0.9).init(scale * PARAMS, 2).leaves[0].integers["params"]
    + scale
  )


def _forward_gradient(scale):
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.forward(optimizer.init(PARAMS, 2), _gradient(scale))
  return optimizer.params(state)


def _forward_optimizer(scale):
  optimizer = revmom.sgd(0.1 * scale, 0.9)
  state = optimizer.forward(optimizer.init(PARAMS, 2), _gradient(1.0))
  return jax.lax.stop_gradient(optimizer).params(state)


def _inverse(scale):
  optimizer = revmom.sgd(0.1, 0.9)
  state = optimizer.forward(optimizer.init(PARAMS, 2), _gradient(1.0))
  return optimizer.params(optimizer.inverse(state, _gradient(scale)))


def _average(scale):
  optimizer = revmom.averaged(revmom.sgd(0.1, 0.9), 0.5)
  state = optimizer.init(PARAMS, 2)
  state = optimizer.forward(state, _gradient(1.0))
  optimizer = revmom.averaged(revmom.sgd(0.1, 0.9), 0.5 * scale)
  return optimizer.average_params(state)


def _as_optax(scale):
  transformation = revmom.as_optax(revmom.sgd(0.1, 0.9), 2)
  state = transformation.init(PARAMS)
  params = transformation.params(state)
  updates, _ = transformation.update(_gradient(scale)(params), state, params)
  return optax.apply_updates(params, updates)


def _as_optax_hyperparameter(scale):
  transformation = revmom.as_optax(revmom.adam(0.1 * scale), 2)
  state = transformation.init(PARAMS)
  params = transformation.params(state)
  updates, _ = transformation.update(PARAMS, state, params)
  return optax.apply_updates(params, updates)


def _stepper_batch(scale):
  stepper = revmom.Stepper(_loss, revmom.sgd(0.1, 0.9))
  state, loss = stepper.forward(stepper.init(PARAMS, 2), scale * BATCHES[0])
  return stepper.params(state) + loss


def _stepper_optimizer(scale):
  stepper = revmom.Stepper(_loss, revmom.sgd(0.1 * scale, 0.9))
  return stepper.forward(stepper.init(PARAMS, 2), BATCHES[0])[1]


def _state_of_a_run(scale):
  optimizer = revmom.sgd(0.1, 0.9)
  run = revmom.train(_loss, optimizer, PARAMS, BATCHES, scale)
  return optimizer.params(run.state)


def _rewind(scale):
  optimizer = revmom.sgd(0.1, 0.9)
  run = revmom.train(_loss, optimizer, PARAMS, BATCHES, 1.0)
  rewound = revmom.rewind(_loss, optimizer, run.state, BATCHES, scale)
  return rewound.params


@pytest.mark.parametrize(
  "function",
  [
    _init,
    _forward_gradient,
    _forward_optimizer,
    _inverse,
    _average,
    _as_optax,
    _as_optax_hyperparameter,
    _stepper_batch,
    _stepper_optimizer,
    _state_of_a_run,
    _rewind,
  ],
)
def test_a_derivative_through_integers_is_an_error(function):
  objective = lambda scale: jnp.sum(function(scale))
  with pytest.raises(ValueError, match=r"revmom\.train"):
    jax.eval_shape(jax.grad(objective), 1.0)


def test_a_stopped_gradient_is_none():
  """And the same computation beside one that differentiates is no error."""

  def objective(scale):
    optimizer = revmom.sgd(0.1, 0.9)
    run = revmom.train(_loss, optimizer, PARAMS, BATCHES, scale)
    fixed = jax.lax.stop_gradient((scale, run.state))
    state = optimizer.forward(
      optimizer.init(PARAMS, 2), lambda params: fixed[0] * params
    )
    views = optimizer.params(state), optimizer.params(fixed[1])
    return jnp.sum(run.params), (run.state, views)

  gradient, (state, (_, params)) = jax.jit(jax.grad(objective, has_aux=True))(
    1.0
  )
  run = jax.jit(
    lambda: revmom.train(_loss, revmom.sgd(0.1, 0.9), PARAMS, BATCHES, 1.0)
  )()
  assert float(gradient) != 0
  chex.assert_trees_all_equal(state, run.state)
  assert (params == run.params).all()


def test_the_volume_differentiates():
  def objective(momentum):
    optimizer = revmom.sgd(0.1, momentum)
    state = optimizer.init(PARAMS, 3)
    for _ in range(3):
      state = jax.lax.stop_gradient(optimizer).forward(state, jnp.sin)
    return optimizer.log_det(state)

  gradient = jax.jit(jax.grad(objective))(0.8)  # 3 steps, 2 parameters
  assert abs(float(gradient) - 6 / 0.8) < 1e-5
