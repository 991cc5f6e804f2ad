"""The experiments of the notebooks: what each runs, and its tables.

- 01: `prelogits`, real pre-logits, measured once;
- 06: `main_results`, and `prompt_sets`, the same on all sets of prompts;
- 07: `ablations`, and `dials`, more of them;
- 10: `drift`, why the mean of AISP drifts; `prefix_share`, where in time the signal is; `steering`, how far
  AISP and MISVO steer;
- 11: `beyond`, the protocol; `contenders`, the rows; `declared`, contrasts that were declared before they
  were computed; `pool` and `selection`, every candidate of a run in numbers, and what other rules
  would have returned;
- 12: `verified`, the protocol under rewards that a program checks; `passing`, its tables.
"""
