"""From records to what a reader sees.

`measures`: diversity, coherence and more of the responses; `tables`: means with intervals, differences
and printed tables; `comparisons`: rows against each other; `findings`: results in words, decided by
intervals; `answers`: the answers themselves, side by side and as examples chosen by a rule.
"""
