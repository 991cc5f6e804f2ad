"""The likelihood of responses under an aligner, which its loss and its evaluation are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from aisp.policy import Policy, prelogits_changed
from aisp.training.ram_data import Example, batches_of


def log_likelihood(policy: Policy, model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """log Q(y | x) of responses under a model, in nats, (B,) float32.

    Padding follows the tokens, where causal attention does not see it, so that no mask is needed.
    Only the positions that predict a response's tokens are handed to the output embeddings: no
    other logits are computed.
    """
    width = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    for i, (tokens, start) in enumerate(examples):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        predicts[i, start - 1 : len(tokens) - 1] = True
    row, column = torch.nonzero(predicts, as_tuple=True)
    targets = ids[row, column + 1].to(policy.head_device)

    def those_that_predict(z: Tensor) -> Tensor:
        return z[row.to(z.device), column.to(z.device)][None]

    with prelogits_changed(model, those_that_predict):
        logits = model(input_ids=ids.to(policy.device), use_cache=False).logits[0]
    log_q = -F.cross_entropy(logits.float(), targets, reduction="none")
    return log_q.new_zeros(len(examples)).index_add(0, row.to(log_q.device), log_q)


def loss_weights(preferred: Sequence[Example], samples: Sequence[Example], a: float) -> Tensor:
    """The factor of each response's log Q in the loss, per preferred token; preferred ones first."""
    tokens = sum(len(e.ids) - e.start for e in preferred)
    lowered = a * len(preferred) / len(samples) / tokens
    return torch.tensor([-1 / tokens] * len(preferred) + [lowered] * len(samples))


@torch.no_grad()
def evaluate(
    policy: Policy,
    model: PreTrainedModel,
    preferred: Sequence[Example],
    samples: Sequence[Example],
    batch_tokens: int,
) -> dict[str, float]:
    """Mean log Q per token, in nats, of preferred responses and of the policy's samples."""
    result = {}
    for name, examples in (("preferred", preferred), ("samples", samples)):
        sums = [
            log_likelihood(policy, model, [examples[i] for i in batch]).sum().item()
            for batch in batches_of(examples, range(len(examples)), batch_tokens)
        ]
        result[name] = sum(sums) / sum(len(e.ids) - e.start for e in examples)
    return result
