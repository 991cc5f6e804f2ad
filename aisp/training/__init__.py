"""What is trained in this project, each by a command of its own.

- `preference_head`: the embedded reward, logistic regression on human preference pairs;
- `judge`: the embedded judge, the same on other features and pairs;
- `value`: RE-Control's value function, on labeled responses of the policy;
- `ram`: RAM's residual aligner, LoRA adapters on the policy.

The commands read data that is not in this repository; what they write lies in data/, with a card.
"""
