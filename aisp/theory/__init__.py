"""Theory that checks itself: what notebook 01 shows and the tests of the derivation rest on.

- `toys`: small systems with exact answers, which `aisp.control` is compared with;
- `diagnostics`: measurements on the pre-logits of a real model.
"""

from aisp.theory import diagnostics, toys

__all__ = ["diagnostics", "toys"]
