"""What runs in vLLM's workers: the perturbation of logits, by vLLM's own interfaces.

`Processor` is a custom logits processor of both model runners of vLLM 0.32 (`aisp.remote` says which
versions work):

- vllm.v1.sample.logits_processor: told which requests enter, leave and move, and called with one row
  per request; a row's step is the length of the list of its output tokens;
- vllm.v1.worker.gpu.sample.logits_processor (Model Runner V2): told which request enters a slot, and
  called with a context that says which slot each row belongs to, in another order every step; a row's
  step is its position less the length of its prompt.

Both end in one call of `aisp.engine.job.Decoder.change`. `Extension` adds methods to the workers,
which the driver calls by name. The head is the model's own `compute_logits`, which gathers what
several GPUs have of it, and scales, as the model does; its bias is taken out.
"""

from typing import Any

import torch
from torch import Tensor

from aisp.engine.job import Decoder

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as FirstInterface
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface
except ModuleNotFoundError as error:  # the API pages and the tests of this logic need no vLLM
    if error.name != "vllm":
        raise
    FirstInterface = type("FirstInterface", (), {"__module__": "vllm"})
    SecondInterface = type("SecondInterface", (), {"__module__": "vllm"})


class Head:
    """A model's output embeddings as a linear map, from (R, d) float32 to (R, |V|).

    Attributes:
        d: width of the pre-logit.
    """

    def __init__(self, model: Any, d: int, dtype: torch.dtype, device: torch.device) -> None:
        self.model, self.d, self.dtype, self.device = model, d, dtype, device
        bias = self._logits(torch.zeros(1, d, device=device))
        self.bias = bias if bool(bias.any()) else None

    def __call__(self, v: Tensor) -> Tensor:
        logits = self._logits(v)
        return logits if self.bias is None else logits - self.bias

    def is_linear(self) -> bool:
        """Whether 64 times a pre-logit has 64 times the logits, up to rounding."""
        v = torch.linspace(-1, 1, self.d, device=self.device).unsqueeze(0)
        once, often = self(v).float(), self(64 * v).float() / 64
        return bool((once - often).abs().max() <= 0.02 * once.abs().max())

    @torch.inference_mode()
    def _logits(self, v: Tensor) -> Tensor:
        return self.model.compute_logits(v.to(self.dtype))


class _Now:
    """What this worker computes with: set by `Extension`, read by `Processor`."""

    head: Head | None = None
    decoder: Decoder | None = None


class Extension:
    """Methods of every worker."""

    def aisp_facts(self: Any) -> dict[str, Any] | None:
        """What the driver must know of the model; None from a worker that does not have its head."""
        import vllm
        from vllm.distributed import get_pp_group

        if not get_pp_group().is_last_rank:
            return None
        config = self.vllm_config.model_config
        d = config.hf_text_config.hidden_size
        _Now.head = Head(self.get_model(), d, config.dtype, self.device)
        return {
            "device": torch.device(self.device).type,
            "dtype": str(config.dtype).removeprefix("torch."),
            "d": d,
            "linear": _Now.head.is_linear(),
            "version": vllm.__version__,
        }

    def aisp_begin(self: Any, payload: bytes) -> None:
        """The next requests belong to this job."""
        if _Now.head is not None:
            _Now.decoder = Decoder(payload, torch.device(self.device))

    def aisp_end(self: Any) -> bool:
        """Forget the job; whether logits of it were not finite."""
        decoder, _Now.decoder = _Now.decoder, None
        return decoder is not None and bool(decoder.broken)


class Processor(FirstInterface, SecondInterface):
    """A logits processor of both model runners."""

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        """(vllm_config, device, is_pin_memory), or (vllm_config, req_states) of Model Runner V2."""
        self.states: Any = rest[0] if len(rest) == 1 else None
        # Row of the batch, or slot of the request -> row of the job, and its output tokens.
        self.requests: dict[int, tuple[int, list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Whatever the driver sends is right."""

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        if not self.requests:
            return logits
        return self._first(logits) if ctx is None else self._second(logits, ctx)

    # -- the first interface ----------------------------------------------------------------------

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.requests.pop(index, None)
        for index, params, _, output in batch_update.added:
            self._enter(index, params, output)
        for a, b, direction in batch_update.moved:
            first, second = self.requests.pop(a, None), self.requests.pop(b, None)
            if first is not None:
                self.requests[b] = first
            if second is not None and direction.name == "SWAP":
                self.requests[a] = second

    def _first(self, logits: Tensor) -> Tensor:
        at = sorted(self.requests)
        rows, outputs = zip(*(self.requests[index] for index in at), strict=True)
        steps = torch.tensor([len(output) for output in outputs], device=logits.device)
        return _changed(logits, at, rows, steps)

    # -- the second interface ---------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return self._enter(req_idx, sampling_params, [])

    def _second(self, logits: Tensor, ctx: Any) -> Tensor:
        slots = ctx.idx_mapping_np.tolist()
        if len(slots) != len(logits):
            raise RuntimeError("vLLM decodes several tokens at once; turn speculative decoding off")
        at = [row for row, slot in enumerate(slots) if slot in self.requests]
        if not at:
            return logits
        rows = [self.requests[slots[row]][0] for row in at]
        prompts = self.states.prompt_len.gpu[ctx.expanded_idx_mapping]
        steps = (ctx.pos + 1 - prompts).long()
        return _changed(logits, at, rows, steps if len(at) == len(slots) else steps[at])

    def _enter(self, index: int, params: Any, output: list[int]) -> bool:
        row = (params.extra_args or {}).get("aisp")
        self.requests.pop(index, None)  # a slot may have had another request
        if row is not None:
            self.requests[index] = row, output
        return row is not None


def _changed(logits: Tensor, at: Any, rows: Any, steps: Tensor) -> Tensor:
    """The job applied to the rows `at` of the logits, which are `rows` of the job."""
    decoder, head = _Now.decoder, _Now.head
    if decoder is None or head is None:  # left over from an interrupt: nobody reads what comes out
        return logits
    of_job = torch.tensor(rows, device=logits.device)
    if list(at) == list(range(len(logits))):
        return decoder.change(logits, of_job, steps, head)
    index = torch.tensor(at, device=logits.device)
    return logits.index_copy_(0, index, decoder.change(logits[index], of_job, steps, head))
