"""Small systems with exact answers, shared by the theory notebook and the tests.

Nothing here uses `aisp.control`: expectations are enumerated, integrated by quadrature, or written
in closed form, so that agreement with `control` is evidence. Only `run_sampler` touches the
package's sampler, as the system under test.

- `laws`: laws on finitely many points (`kl`, `tilt`, `objective`), and `normal_expectation`;
- `gaussian`: `GaussianToy`, a linear or quadratic reward of V itself, everything in closed form;
- `language`: `ToyLM`, a language model with a few tokens and a pre-logit of two or three dimensions,
  decoded greedily from W (z_t + v_t), so that the reward depends on V only through the text;
- `iteration`: what AISP does on either of the two toys.

The two toys share `log_partition(base)` and `tilted_mean(base)`: log E[exp(r / lam)] and the mean of
the law proportional to exp(r / lam), both over N(base, sigma^2 I). Base 0 gives the paper's Q*; other
bases give the target of the weights with alpha > 0, see `alpha_step`.

Shapes: n draws, horizon tau, pre-logit width d, vocabulary size m, S = m^tau texts. All float64.
"""

from aisp.theory.toys.gaussian import GaussianToy
from aisp.theory.toys.iteration import (
    Toy,
    alpha_fixed_point,
    alpha_objective,
    alpha_step,
    ess_fraction,
    log_density_ratio,
    run_sampler,
)
from aisp.theory.toys.language import Law, ToyLM
from aisp.theory.toys.laws import kl, normal_expectation, objective, tilt

__all__ = [
    "GaussianToy",
    "Law",
    "Toy",
    "ToyLM",
    "alpha_fixed_point",
    "alpha_objective",
    "alpha_step",
    "ess_fraction",
    "kl",
    "log_density_ratio",
    "normal_expectation",
    "objective",
    "run_sampler",
    "tilt",
]
