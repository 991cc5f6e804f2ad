"""What the papers measure on responses besides the reward.

Functions of N responses give N numbers, (N,) float64 on the CPU, so that a table can average them
over prompts with an interval (`aisp.intervals.bootstrap`). Win rates are computed in
`aisp.metrics.comparison`, whose names are found here too. Numbers are only comparable
under the same convention (diversity), encoder (coherence), pair of policies (KL) or judge (wins):
report it with the number.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aisp.assets import EMBEDDED
from aisp.checks import choice
from aisp.metrics.comparison import check_texts
from aisp.policy import Policy, require_same_vocabulary
from aisp.prompts import as_messages
from aisp.rewards.encoder import SentenceEncoder, load_encoder

ADDED = {"plain": 0, "re-control": 1}  # convention of diversity -> added to the number of m-grams


def length(responses: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None) -> Tensor:
    """Words of each response as white space separates them, or tokens of a tokenizer, (N,)."""
    check_texts(responses)
    if tokenizer is None:
        counts = [len(text.split()) for text in responses]
    else:
        counts = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in responses]
    return torch.tensor(counts, dtype=torch.float64)


def diversity(
    responses: Sequence[str],
    *,
    convention: str = "plain",
    split: Callable[[str], Sequence[str]] = str.split,
) -> Tensor:
    """How little each response repeats itself: prod_{m=2..4} unique m-grams / m-grams.

    The product of 1 - rep-m (Welleck et al., arXiv:1908.04319) over m, as in Su et al.
    (arXiv:2202.06417). 1 where nothing is repeated, whatever else may be wrong with the text.

    Args:
        responses: N texts.
        convention: "plain" is the formula above, "re-control" divides by the number of m-grams plus
            one, as the public code of RE-Control (arXiv:2406.05954) does. That value is
            always below 1, and lower for shorter texts. (It also splits with `nltk.word_tokenize`.)
        split: from a text to its words; default at white space, so that punctuation belongs to the
            word it touches.

    Returns:
        (N,) in [0, 1]. A text of fewer than 4 words has no 4-grams: NaN, or 0 in "re-control".
    """
    check_texts(responses)
    added = ADDED[choice("convention", convention, list(ADDED))]
    values = []
    for text in responses:
        words, value = split(text), 1.0
        for m in (2, 3, 4):
            grams = [tuple(words[i : i + m]) for i in range(len(words) - m + 1)]
            total = len(grams) + added
            value *= len(set(grams)) / total if total else math.nan
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


def coherence(
    prompts: Sequence[Any],
    responses: Sequence[str],
    *,
    encoder: SentenceEncoder | str | Path = EMBEDDED,
) -> Tensor:
    """How near each response is to its prompt: cos(e(x), e(y)), e a sentence embedding.

    As in Su et al. (arXiv:2202.06417) and RE-Control (arXiv:2406.05954), with SimCSE there. The
    prompt of several turns is embedded as their texts, separated by blank lines (ours).

    Args:
        encoder: an encoder, or "embedded" to load the one that works offline.

    Returns:
        (N,) in [-1, 1].
    """
    check_texts(responses, prompts)
    if not isinstance(encoder, SentenceEncoder):
        encoder = load_encoder(encoder)
    questions = ["\n\n".join(m["content"] for m in as_messages(p)) for p in prompts]
    e = encoder.embed([*questions, *responses]).double()
    return (e[: len(questions)] * e[len(questions) :]).sum(-1).clamp(-1, 1)


def token_kl(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q || p) = sum_v q(v) log(q(v) / p(v)) of categorical laws, in nats.

    Args:
        q_logits, p_logits: (..., |V|).

    Returns:
        (...) float64.
    """
    q, p = (torch.log_softmax(x.double(), -1) for x in (q_logits, p_logits))
    return torch.where(q > -torch.inf, q.exp() * (q - p), 0.0).sum(-1).clamp(min=0)


def kl_to_base(
    base: Policy,
    prompts: Sequence[Any],
    responses: Sequence[str | Sequence[int]],
    *,
    policy: Policy | None = None,
    U: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """KL of a controlled law q to the base policy p along each response, in nats.

        sum_{t=1..T} KL(q(. | x, y_<t) || p(. | x, y_<t))

    Its mean over responses drawn from q is KL(q || p) of the whole responses (the chain rule). For
    responses that were selected, or drawn with noise around U, it measures how far q is from p along
    these responses, without the KL that selection and noise add; `surprisal` bounds the total.
    Laws are those at temperature 1.

    Args:
        base: the base policy.
        prompts: N prompts.
        responses: N texts, read as tokens of base's tokenizer without an end of turn, or N token id
            sequences as they were decoded (`Rollout.tokens` up to its length), which is exact.
        policy: q is this policy: an aligner, or the same weights under another template.
        U: q is base with u_t added to its pre-logits, softmax(W (z_t + u_t) + b) for t <= tau, such
            as the mean that AISP ends with (`Alignment.U`, arXiv:2510.26219): one tensor (tau, d)
            for all responses, or N of them, one for each; any tau.

    Returns:
        (N,) >= 0; 0 for a response without tokens.

    Raises:
        ValueError: not one of `policy` and `U`, another vocabulary, or shapes that do not fit.
    """
    if (policy is None) == (U is None):
        raise ValueError("pass one of policy and U: the law that is compared with the base policy")
    means = None if U is None else _means(U, len(prompts), base.d)
    if policy is not None:
        why = "KL compares laws over the same tokens: use policies with one tokenizer"
        require_same_vocabulary(policy, base, why)
    values = []
    for i, (prompt, tokens) in enumerate(_tokenized(base, prompts, responses)):
        p = base.response_logits(prompt, tokens)
        moved = None if means is None else means[i]
        q = (policy or base).response_logits(prompt, tokens, moved).to(p.device)
        size = min(p.shape[-1], q.shape[-1])  # models of one vocabulary may pad it differently
        values.append(token_kl(q[:, :size], p[:, :size]).sum().item())
    return torch.tensor(values, dtype=torch.float64)


def _means(U: Tensor | Sequence[Tensor], count: int, d: int) -> Sequence[Tensor]:
    """One mean (tau, d) for each of so many responses."""
    means = [U] * count if isinstance(U, Tensor) and U.dim() == 2 else list(U)
    if len(means) != count or any(u.dim() != 2 or u.shape[1] != d for u in means):
        raise ValueError(
            f"U has shapes {[tuple(u.shape) for u in means]}; expected one tensor (tau, {d}) or "
            f"{count} of them, one for each response"
        )
    return means


def surprisal(
    base: Policy, prompts: Sequence[Any], responses: Sequence[str | Sequence[int]]
) -> Tensor:
    """-log p(y | x) of each response under the base policy, in nats, (N,).

    It equals KL(delta_y || p), where delta_y always answers y: the cost of a response in KL, however
    it was found. It is defined for every method, whether it selects, steers or decodes greedily, and
    its mean is an upper bound on the KL of a method's law: KL(q || p) = E_q[-log p(y | x)] - H(q).

    Args:
        base, prompts, responses: as in `kl_to_base`.
    """
    pairs = _tokenized(base, prompts, responses)
    values = [-base.log_probs(prompt, tokens).sum().item() for prompt, tokens in pairs]
    return torch.tensor(values, dtype=torch.float64)


def _tokenized(
    base: Policy, prompts: Sequence[Any], responses: Sequence[str | Sequence[int]]
) -> list[tuple[Any, list[int]]]:
    if isinstance(responses, str) or len(prompts) != len(responses):
        raise ValueError(f"got {len(prompts)} prompts and {len(responses)} responses; match them")
    return [
        (p, base.tokenizer(r, add_special_tokens=False)["input_ids"])
        if isinstance(r, str)
        else (p, [int(token) for token in r])
        for p, r in zip(prompts, responses, strict=True)
    ]
