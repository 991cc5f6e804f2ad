"""What the papers measure on responses besides the reward.

- `responses`: length, diversity, coherence, KL to the base policy, surprisal;
- `comparison`: win rates, and the judges that decide them;
- `selection`: which candidate of a pool to return, by other rules than the highest reward; pass@k.
"""

from aisp.metrics.comparison import (
    QUESTION,
    Judge,
    language_model_judge,
    reward_judge,
    win_rate,
)
from aisp.metrics.responses import (
    coherence,
    diversity,
    kl_to_base,
    length,
    surprisal,
    token_kl,
)
from aisp.metrics.selection import pass_at_k

__all__ = [
    "QUESTION",
    "Judge",
    "coherence",
    "diversity",
    "kl_to_base",
    "language_model_judge",
    "length",
    "pass_at_k",
    "reward_judge",
    "surprisal",
    "token_kl",
    "win_rate",
]
