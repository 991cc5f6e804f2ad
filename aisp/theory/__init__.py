"""Theory that checks itself: used by notebook 01 and by the tests of the derivation.

- `toys`: small systems with exact answers, which `aisp.control` is compared with;
- `studies`: the small experiments of notebook 01 on those systems, each of which ends in a table;
- `diagnostics`: measurements on the pre-logits of a real model.
"""

from aisp.theory import diagnostics, toys

__all__ = ["diagnostics", "toys"]
