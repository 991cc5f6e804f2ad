"""What an engine in another process does at each step to decode as `aisp.engine.rollout` does.

Such an engine shows logits and no pre-logits. Where the head is linear, step t of response i decodes
from head(z_t + v_t^i) when its logits become logits + W v_t^i. The driver says once per iteration
what decides v and the uniform numbers of sampling: the mean U and the states of the generators, or V
itself. The worker draws the same numbers as our engine would, in the same order, and takes the token
with the same function (`aisp.engine.decoding`). So in float32 both engines give the same responses.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from aisp.engine.decoding import Decoding, take_token
from aisp.engine.perturbation import Perturbation, perturbations, uniforms

Head = Callable[[Tensor], Tensor]  # from (R, d) float32 to what it adds to logits, (R, |V|)


@dataclass(frozen=True, eq=False)
class Job:
    """One rollout: n responses to each of P prompts, T tokens at most; row p * n + i is one of them.

    Attributes:
        n, T: as above.
        decoding: how a token is taken from its logits.
        V: perturbations as `rollout` takes them, or None.
        states: P states of the prompts' generators, before anything is drawn; empty where nothing is.
    """

    n: int
    T: int
    decoding: Decoding
    V: Tensor | Perturbation | None
    states: Sequence[Tensor] = ()

    @classmethod
    def of(
        cls,
        n: int,
        T: int,
        decoding: Decoding,
        V: Tensor | Perturbation | None,
        generators: Sequence[torch.Generator] | None,
    ) -> "Job":
        """From the arguments of `rollout`, whose generators draw V first and then the uniforms."""
        if isinstance(V, Perturbation):
            return cls(n, T, decoding, V, V.states)
        states = () if decoding.greedy else [g.get_state() for g in generators or ()]
        return cls(n, T, decoding, V, states)

    @property
    def changes_logits(self) -> bool:
        """False where plain greedy decoding is asked for, which every engine has itself."""
        return self.V is not None or not self.decoding.greedy

    def to_bytes(self) -> bytes:
        """In the safetensors format, for a process that this one trusts and that trusts it."""
        told = {"n": self.n, "T": self.T, "decoding": asdict(self.decoding)}
        tensors = {}
        if isinstance(self.V, Perturbation):
            tensors["U"] = self.V.U
            told["drawn"] = {"sigma": self.V.sigma, "antithetic": self.V.antithetic}
        elif self.V is not None:
            tensors["V"] = self.V
        if len(self.states):
            tensors["states"] = torch.stack(list(self.states))
        plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        return save(plain, metadata={"job": json.dumps(told)})


class Decoder:
    """A `Job` in the worker: from logits to what the engine takes its tokens from.

    Attributes:
        broken: () bool, whether logits of a response were not finite.
    """

    def __init__(self, payload: bytes, device: torch.device) -> None:
        """Draw what the job's responses need.

        Args:
            payload: from `Job.to_bytes`.
            device: of the logits, and of the generators that the driver has.
        """
        length = int.from_bytes(payload[:8], "little")
        told = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["job"])
        tensors = load(payload)
        self.decoding, n = Decoding(**told["decoding"]), told["n"]
        sources = [torch.Generator(device) for _ in tensors.get("states", ())]
        for source, state in zip(sources, tensors.get("states", ()), strict=True):
            source.set_state(state.clone())  # which reads the storage from its start
        V = tensors.get("V")
        if "U" in tensors:
            V = perturbations(tensors["U"].to(device), n, generators=sources, **told["drawn"])
        self.V = None if V is None else V.to(device).flatten(0, 1)  # (P n, tau, d)
        self.u = None if self.decoding.greedy else uniforms(sources, n, told["T"], device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)

    def change(self, logits: Tensor, rows: Tensor, steps: Tensor, head: Head) -> Tensor:
        """Logits of which the most likely token is the one that `rollout` would take.

        Args:
            logits: (R, |V|) float32, changed in place.
            rows: (R,) which responses they belong to.
            steps: (R,) the step of each, from 0; negative while its prompt is not read to the end,
                when whatever comes out is not used.
            head: the model's output embeddings as a linear map, without bias.

        Returns:
            logits.
        """
        if self.V is not None:
            tau = self.V.shape[1]
            inside = (steps < tau).unsqueeze(-1)
            # A GPU would have to be waited for.
            if inside.device.type != "cpu" or bool(inside.any()):
                logits += head(self.V[rows, steps.clamp(0, tau - 1)] * inside)
        finite = logits.amax(-1).isfinite()
        self.broken |= ~(finite | (steps < 0)).all()
        if self.u is None:
            return logits
        if logits.device.type == "cpu" and not bool(finite.all()):
            logits[~finite] = 0  # the driver raises; the engine lives on
        u = self.u[rows, steps.clamp(0, self.u.shape[1] - 1)]
        token = take_token(logits, self.decoding, u)
        return logits.fill_(-torch.inf).scatter_(-1, token.unsqueeze(-1), 0.0)
