"""AISP by the exact scores of the tokens ("aisp_scores"): one dial, the temperature of sampling.

AISP moves its mean by the weighted noise that was drawn; here the same weights multiply what the
noise only estimates, the score W^T (onehot(y_t) - p_t) of the sampled tokens. `aisp.methods.misvo` has
the derivation and the step; this is its configuration with three options set, as notebook 11 has
measured it:

- the weights of AISP, softmax(r / lam), minus 1/n;
- no regularization, which AISP at alpha = 1 does not have either;
- step_size 1, the one that its trials took.
"""

from dataclasses import dataclass

from aisp.methods.misvo import MISVOConfig


@dataclass(frozen=True, kw_only=True)
class AISPScoresConfig(MISVOConfig):
    """Parameters of MISVO with other defaults; temperature is the dial.

    Attributes:
        temperature: of sampling; the default is best-of-n's tuned one in notebook 11, about what
            the noise of AISP at sigma = 0.5 does to the law of a token there.
    """

    step_size: float = 1.0
    regularization: str = "none"
    weights: str = "softmax"
    temperature: float = 0.65
