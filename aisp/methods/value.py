"""The value function of RE-Control (Kong et al., arXiv:2406.05954).

V(h) predicts the final reward of a response from the policy's pre-logit h_t at step t.
`aisp.training.value` fits it.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from aisp.assets import trained_part
from aisp.checks import whole
from aisp.loading import load_tensors
from aisp.policy import Policy


class ValueFunction(nn.Module):
    """An MLP with two hidden layers on standardized pre-logits.

    Attributes:
        name: what it was loaded from, or "value".
        mean, scale: (d,), the pre-logit is standardized with them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, d: int, width: int | None = None, generator: torch.Generator | None = None):
        """Draw initial weights from `generator`, so that no global random state is used.

        Args:
            d: width of the pre-logit.
            width: of the hidden layers; None is d.
        """
        super().__init__()
        d = whole("d", d, least=1)
        width = d if width is None else whole("width", width, least=1)
        self.name = "value"
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        with torch.device("meta"):
            layers = [nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, 1)]
        self.layers = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.layers.to_empty(device="cpu")
        for layer in layers:  # nn.Linear's own law
            bound = layer.in_features**-0.5
            for p in layer.parameters():
                nn.init.uniform_(p, -bound, bound, generator=generator)

    @property
    def d(self) -> int:
        return len(self.mean)

    def forward(self, h: Tensor) -> Tensor:
        """Values (...,) of pre-logits (..., d), in units of the reward."""
        return self.layers((h.float() - self.mean) / self.scale).squeeze(-1)

    def ascend(self, h: Tensor, steps: int, step_size: float) -> Tensor:
        """Gradient ascent on V: `steps` times h <- h + step_size * grad V(h); (..., d) float32.

        The weights get no gradients. Works inside `torch.inference_mode` too.
        """
        with torch.inference_mode(False), torch.enable_grad():
            h = h.detach().float().clone()
            for _ in range(steps):
                h.requires_grad_()
                (gradient,) = torch.autograd.grad(self(h).sum(), h)
                h = (h + step_size * gradient).detach()
        return h

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, str(path))


def load_value(source: ValueFunction | Path | str, policy: Policy) -> ValueFunction:
    """A value function for a policy, on its device, gradients off.

    Args:
        source: a `ValueFunction`, the path of a saved one, or "embedded".

    Raises:
        ValueError: there is no such file, it holds something else, or it was made for pre-logits of
            another width.
    """
    if isinstance(source, ValueFunction):
        value = source
    else:
        weights, _ = load_tensors(trained_part("value function", source), "value function")
        try:
            width, d = weights["layers.0.weight"].shape
            value = ValueFunction(d, width)
            value.load_state_dict(weights)
        except (KeyError, ValueError, RuntimeError) as error:  # other names, or other shapes
            raise ValueError(f"{str(source)!r} holds no value function: {error}") from error
        value.name = str(source)
    if value.d != policy.d:
        raise ValueError(
            f"value function {value.name!r} reads pre-logits of width {value.d}; those of "
            f"{policy.name} have {policy.d}. Train one for this policy: aisp.training.value"
        )
    return value.to(policy.head_device).eval().requires_grad_(False)
