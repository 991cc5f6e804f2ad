"""The decoding engine: many responses to each prompt at once, their pre-logits perturbed or not.

- `rollout`: n responses to each of P prompts (`rollout`), and the loop under it (`decode`);
- `stepper`: one model over all rows, from tokens to the next logits;
- `prefill`: prefixes that run once in a whole search;
- `continuation`: the rest of responses whose first tokens are kept;
- `attention`: a prefix that is kept once and shared by all responses to it;
- `decoding`: how a token is taken from logits (`Decoding`);
- `mixture`: two models that decode together, in lockstep or speculatively.

The functions `rollout` and `continuation` have the names of their modules, and are imported from there.
"""

from aisp.engine.decoding import GREEDY, Decoding
from aisp.engine.rollout import Rollout, Step, decode, uniforms
from aisp.engine.stepper import Stepper

__all__ = ["GREEDY", "Decoding", "Rollout", "Step", "Stepper", "decode", "uniforms"]
