"""AISP with the noise of its update taken out ("aisp_cv", for the control variate): one dial, sigma.

The same iterations as `aisp.sampler`, with three of its options set (notebook 10 derives them,
notebook 11 compares):

- alpha = 1, as the term of the KL cost collapses the effective sample size once U is long;
- the weights minus 1/n, which keeps what the update expects to move;
- U moves at the first third of the steps, where responses still share what they answer to.

AISP as published is "aisp" with its defaults.
"""

from dataclasses import dataclass

from aisp.sampler import AISPConfig


@dataclass(frozen=True, kw_only=True)
class AISPCVConfig(AISPConfig):
    """Parameters of AISP with other defaults; sigma is the dial.

    Attributes:
        steered: None is a third of max_new_tokens, at least one step and at most tau.
    """

    alpha: float = 1.0
    control_variate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steered is None:
            first = max(1, self.max_new_tokens // 3)
            object.__setattr__(self, "steered", min(first, self.tau or first))
