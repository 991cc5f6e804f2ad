"""What is trained in this project, each by a command of its own.

- `preference_head`: the embedded reward, logistic regression on human preference pairs;
- `reward_ensemble`: bootstrap refits of it, on the same pairs;
- `judge`: the embedded judge, the same on other features and pairs;
- `value`: RE-Control's value function, on the labeled responses of `value_data`;
- `ram`: RAM's residual aligner, LoRA adapters on the policy, with the data of `ram_data` and the
  likelihoods of `ram_loss`.

The commands read data that is not in this repository; what they write lies in data/, with a card.
"""
