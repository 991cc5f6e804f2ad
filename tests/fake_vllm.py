"""A stand-in for vLLM: its `LLM`, over a model in this process, with the real processor of ours.

It drives `aisp.engine.vllm_worker` as each of vLLM's two model runners does: requests enter, move as
rows before them end, and leave; or keep a slot, and have another row at every step. Every row runs
through the model alone and whole, so that only the logits processor decides which tokens come out.
"""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import transformers

from aisp import remote
from aisp.engine import vllm_worker


class EngineDeadError(Exception):
    pass


class LLM:
    """Has what `aisp.remote` calls of `vllm.LLM`.

    Attributes:
        second: drive Model Runner V2's interface and not the first one.
        seen: what it was started with.
        messages: bytes of each job that crossed.
        dead: raise as vLLM does once its processes have ended.
    """

    second = False

    def __init__(self, model, dtype, **options):
        self.seen = options | {"model": model, "dtype": dtype}
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model).float().eval()
        self.messages, self.dead = [], False
        config = SimpleNamespace(
            dtype=torch.float32,
            hf_text_config=self.model.config.get_text_config(),
            max_model_len=256,
        )
        self.llm_engine = SimpleNamespace(
            model_config=config, has_unfinished_requests=lambda: False
        )
        head = self.model.get_output_embeddings()
        compute = SimpleNamespace(compute_logits=lambda z: head(z))
        self.worker = type("Worker", (vllm_worker.Extension,), {})()
        self.worker.vllm_config, self.worker.device = SimpleNamespace(model_config=config), "cpu"
        self.worker.get_model = lambda: compute
        states = SimpleNamespace(prompt_len=SimpleNamespace(gpu=None))
        rest = [states] if self.second else ["cpu", False]
        self.processor = vllm_worker.Processor(None, *rest)

    def collective_rpc(self, name, args=()):
        self.alive()
        self.messages += [len(x) for x in args]
        return [getattr(self.worker, name)(*args)]

    def alive(self):
        if self.dead:
            raise EngineDeadError("the engine is dead")

    @torch.inference_mode()
    def generate(self, prompts, params, use_tqdm):
        self.alive()
        params = params if isinstance(params, list) else [params] * len(prompts)
        rows = [
            SimpleNamespace(ids=p["prompt_token_ids"], params=s, outputs=[], number=i)
            for i, (p, s) in enumerate(zip(prompts, params, strict=True))
        ]
        (self.by_slots if self.second else self.by_rows)(rows)
        done = (SimpleNamespace(outputs=[SimpleNamespace(token_ids=r.outputs)]) for r in rows)
        return list(done)

    def logits(self, rows):
        each = [self.model(torch.tensor([r.ids + r.outputs])).logits[0, -1] for r in rows]
        return torch.stack(each)

    def take(self, rows, logits):
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            row.outputs.append(token)
        return [ended(row) for row in rows]

    def by_rows(self, rows):
        """The first interface: a hole is filled with the last row."""
        batch = list(rows)
        added = [(i, r.params, r.ids, r.outputs) for i, r in enumerate(batch)]
        self.processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
        while batch:
            over = self.take(batch, self.processor.apply(self.logits(batch)))
            holes, moved = [i for i, x in enumerate(over) if x], []
            for hole in holes:
                while batch and ended(batch[-1]):
                    batch.pop()
                if hole < len(batch):
                    way = SimpleNamespace(name="UNIDIRECTIONAL")
                    moved.append((len(batch) - 1, hole, way))
                    batch[hole] = batch.pop()
            update = SimpleNamespace(removed=holes, added=[], moved=moved) if holes else None
            self.processor.update_state(update)

    def by_slots(self, rows):
        """The second interface: slots from the end of a list, rows in another order every step."""
        slots = {id(r): len(rows) - i for i, r in enumerate(rows)}
        lengths = torch.zeros(len(rows) + 1, dtype=torch.int32)
        for r in rows:
            self.processor.add_request(slots[id(r)], r.params)
            lengths[slots[id(r)]] = len(r.ids)
        self.processor.states.prompt_len.gpu = lengths
        order = np.random.default_rng(0)
        while rows:
            rows = [rows[i] for i in order.permutation(len(rows))]
            at = np.array([slots[id(r)] for r in rows])
            pos = torch.tensor([len(r.ids) + len(r.outputs) - 1 for r in rows])
            mapping = torch.from_numpy(at)
            ctx = SimpleNamespace(idx_mapping_np=at, expanded_idx_mapping=mapping, pos=pos)
            over = self.take(rows, self.processor.apply(self.logits(rows), ctx))
            rows = [r for r, x in zip(rows, over, strict=True) if not x]


def ended(row):
    last = row.outputs[-1] in getattr(row.params, "stop_token_ids", ())
    return last or len(row.outputs) == row.params.max_tokens


def install(monkeypatch, second=False, version="0.32.0"):
    """Let `import vllm` find this, with the version that a package of it would have."""
    package, exceptions = ModuleType("vllm"), ModuleType("vllm.v1.engine.exceptions")
    package.LLM = type("LLM", (LLM,), {"second": second})
    package.SamplingParams = lambda **given: SimpleNamespace(**{"extra_args": None} | given)
    package.__version__ = version
    exceptions.EngineDeadError = EngineDeadError
    distributed = ModuleType("vllm.distributed")
    distributed.get_pp_group = lambda: SimpleNamespace(is_last_rank=True)
    modules = {"vllm": package, "vllm.distributed": distributed}
    modules |= {"vllm.v1": ModuleType("vllm.v1"), "vllm.v1.engine": ModuleType("vllm.v1.engine")}
    for name, module in (modules | {"vllm.v1.engine.exceptions": exceptions}).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(remote, "_vllm_version", lambda: version)
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "")  # what loading sets is gone after the test
        monkeypatch.delenv(name)
    return package
