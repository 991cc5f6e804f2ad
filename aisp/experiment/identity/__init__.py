"""What tells records apart: digests of the policy, the reward, and what a configuration holds.

- `made_with`: what a record says of its making, and how two of these differ;
- `digests`: one number for a function, model or value, from its content;
- `weights`, `bytecode`: what `digests` reads of models and of functions.
"""

from aisp.experiment.identity.made_with import (
    differences,
    made_with,
    prompt_difference,
    refusal,
    told_of_reward,
    unknown_maker,
)

__all__ = [
    "differences",
    "made_with",
    "prompt_difference",
    "refusal",
    "told_of_reward",
    "unknown_maker",
]
