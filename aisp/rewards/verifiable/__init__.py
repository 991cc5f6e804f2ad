"""Rewards that a program checks, without a judge (IFEval, arXiv:2311.07911, and the like).

- `reward`: `VerifiableReward`, the share of a prompt's checks that hold;
- `kinds`: which kinds of checks there are, and where another one is entered;
- `registry`: instructions by their id, and the checks of their arguments;
- `instructions`, `formats`: IFEval's 25 instructions, one small function each;
- `contradictions`: instructions that no response can follow together;
- `text`, `language`: words, sentences and paragraphs; the language of a text;
- `answers`: the number that a response ends with;
- `sandbox`: code checked by its tests, in processes of its own (`jail` runs there).
"""

from aisp.rewards.verifiable import sandbox
from aisp.rewards.verifiable.kinds import rules
from aisp.rewards.verifiable.reward import VerifiableReward

__all__ = ["VerifiableReward", "rules", "sandbox"]
