"""The methods behind one call, `align`: AISP itself and what it is compared with, one file each.

- `registry`: which methods there are (`METHODS`, `available`), their configurations (`configure`),
  and the front door (`align`);
- `best_of_n`, `args`, `re_control`, `ram`, `kad`, `misvo`, `speculative_rejection`: the other systems;
- `qalign`, `metropolis`, `elliptical_slice`, `tempered_smc`: samplers of the exact target that AISP
  replaces by a Gaussian, on what `chains` shares among them;
- `value`, `aligner`: the trained parts that RE-Control and RAM need.
"""

from aisp.methods.registry import METHODS, align, available, configure

__all__ = ["METHODS", "align", "available", "configure"]
