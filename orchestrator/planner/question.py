"""What a service asks: the model, the load, and what its arguments say of how."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from orchestrator.backend import Mount
from orchestrator.catalog import Accelerator, ModelFacts
from orchestrator.engines import Stated, engine
from orchestrator.engines.job import room_for
from orchestrator.frozen import frozen
from orchestrator.planner.choose import LEAST_CONTEXT
from orchestrator.planner.compose import environment
from orchestrator.planner.demand import AcceleratorDemand
from orchestrator.planner.parallelism import Degrees
from orchestrator.planner.sizing import Measured, ServingJob
from orchestrator.planner.sizing.weights import published_format, weight_bytes
from orchestrator.planner.sources import adapter_source, model_source
from orchestrator.planner.why import Objection, objections
from orchestrator.spec.models import Model, Service, Traffic
from orchestrator.units import format_bytes

AUTO_ENGINES = ("vllm", "sglang", "transformers")
"""Engines that ``auto`` tries, in this order; NIM needs a licence, and TGI has ended upstream."""


@frozen
class Question:
    """What is asked: the model, the load, and what the spec says of how."""

    facts: ModelFacts
    model: Model
    traffic: Traffic
    engine: str = "auto"
    version: str | None = None
    args: tuple[str, ...] = ()
    served_name: str | None = None
    image: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    port: int | None = None
    bare: bool = False
    """Whether it runs on machines that have the engine installed, without images and mounts."""
    only_cpu: bool = False
    """Whether the spec asks for no accelerator, which is more than to name none."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines to ask, in this order."""
        return AUTO_ENGINES if self.engine == "auto" else (self.engine,)

    @property
    def request_tokens(self) -> int:
        """Tokens that a typical request takes up: its prompt and, where there is one, its answer."""
        return self.traffic.input_tokens + (0 if self.facts.pools else self.traffic.output_tokens)

    @property
    def input_tokens(self) -> int:
        """Tokens of a typical prompt, none of which is beyond what a model that pools takes."""
        asked, longest = self.traffic.input_tokens, self.facts.context
        return min(asked, longest) if self.facts.pools and longest else asked

    @property
    def stated(self) -> Stated:
        """What the user's arguments say of the job, read as the first engine that knows them does."""
        said = (engine(name).states(self.args) for name in self.engines) if self.args else ()
        return next((found for found in said if found != Stated()), Stated())

    @property
    def degrees(self) -> Degrees:
        """Degrees of parallelism that the user's arguments fix."""
        stated = self.stated
        return Degrees(stated.tensor, stated.pipeline, stated.data)

    @property
    def job(self) -> ServingJob:
        """The question as sizing asks it; degrees of parallelism are found there.

        What the user's arguments say is asked as well: the engine will be told it.
        """
        measured, stated = self.model.measured, self.stated
        contexts = [c for c in (self.model.context, stated.context_tokens) if c]
        return ServingJob(
            engine="vllm" if self.engine == "auto" else self.engine,
            engine_version=self.version,
            precision=self.model.quantization or self.model.precision,
            kv_cache=(stated.kv_dtype or "auto") if self.model.kv_cache == "auto" else self.model.kv_cache,
            context=max(contexts, default=None),
            memory_utilization=stated.memory_utilization,
            max_num_seqs=stated.max_num_seqs,
            max_num_batched_tokens=stated.max_num_batched_tokens,
            concurrency=self.traffic.concurrency,
            adapters=self.model.max_adapters or len(self.model.adapters),
            adapter_rank=room_for(adapter.rank for adapter in self.model.adapters),
            measured=Measured(
                weights_bytes=measured.weights,
                activations_bytes=measured.activations,
                non_torch_bytes=measured.non_torch,
                graphs_bytes=measured.graphs,
            )
            if measured
            else Measured(),
        )

    def objections(
        self, wanted: AcceleratorDemand | None, accelerators: Mapping[str, Accelerator]
    ) -> tuple[Objection, ...]:
        """Return what of the spec contradicts itself or its model, each with its numbers.

        ``wanted`` are the accelerators it names, ``accelerators`` the catalog's by name.
        """
        against = [Objection("args", text) for text in self._against_args()]
        against += [Objection("traffic", text) for text in self._against_traffic()]
        return tuple(against) + objections(self.facts, self.job, wanted, accelerators, fixed=self.degrees)

    def unread_args(self) -> str | None:
        """Say why no engine can be given the user's arguments, None where one can."""
        own = self.image is not None
        said = [engine(name).objects(self.args, version=self.version, own_image=own) for name in self.engines]
        return None if None in said else said[0]

    def _against_args(self) -> Iterator[str]:
        stated, model, load = self.stated, self.model, self.traffic
        longest, asked = stated.context_tokens, self.request_tokens
        at_once, kept = stated.max_num_seqs, {stated.kv_dtype or "auto", model.kv_cache} - {"auto"}
        if longest and model.context and longest < model.context:
            yield f"args hold requests of {longest:,} tokens, fewer than the context of {model.context:,}"
        elif longest and longest < asked:
            yield f"args hold requests of {longest:,} tokens, fewer than the traffic's {asked:,}"
        if at_once and at_once < load.concurrency:
            yield f"args run {at_once:,} requests at once, fewer than the traffic's {load.concurrency:,}"
        if len(kept) > 1:
            yield f"args keep the KV cache in {stated.kv_dtype}, kv_cache says {model.kv_cache}"

    def _against_traffic(self) -> Iterator[str]:
        """Yield what of a stated load no request can be; what args hold is told of them."""
        said = self.traffic.model_fields_set & {"input_tokens", "output_tokens"}
        longest, asked = self.model.context or self.facts.context, self.request_tokens
        if said and longest and longest < asked and not (self.facts.pools or self.stated.context_tokens):
            whose = "a context of" if self.model.context else "the model's"
            yield f"requests of {asked:,} tokens are beyond {whose} {longest:,}"

    @property
    def least_context(self) -> int:
        """Tokens a request must be able to hold where the spec states no context."""
        return max(LEAST_CONTEXT, self.request_tokens)

    def mounts(self) -> tuple[Mount, ...]:
        """Return what the container sees of this machine: a local model and local adapters."""
        if self.bare:
            return ()
        _, model = model_source(self.model)
        adapters = [mount for each in self.model.adapters for mount in adapter_source(each)[1]]
        return (*model, *adapters)


def question_of(spec: Service, facts: ModelFacts, *, bare: bool = False) -> Question:
    """Return what a service asks; ``bare`` of machines that have its engine installed.

    Raises:
        ValueError: the service names no model.
    """
    if spec.model is None:
        raise ValueError(f"service {spec.name!r} names no model")
    env, secrets = environment(spec.env)
    only_cpu = spec.resources.asks_for_no_gpu
    named = "transformers" if only_cpu and spec.engine == "auto" else spec.engine
    asked = Question(
        facts, spec.model, spec.traffic, named, spec.engine_version, arguments(spec.args),
        image=spec.image, env=env, secrets=secrets, bare=bare, only_cpu=only_cpu,
        port=spec.port.container_port if spec.port else None,
    )  # fmt: skip
    return replace(asked, facts=asked.stated.of(facts))


def arguments(args: Mapping[str, object]) -> tuple[str, ...]:
    """Return a mapping of arguments as an engine's command line takes them.

    >>> arguments({"max-model-len": 8192, "enforce_eager": True, "seed": None})
    ('--max-model-len', '8192', '--enforce-eager')
    >>> arguments({"enable_prefix_caching": False, "limit_mm_per_prompt": {"image": 2}})
    ('--no-enable-prefix-caching', '--limit-mm-per-prompt', '{"image": 2}')
    """
    words: list[str] = []
    for name, value in args.items():
        flag = flag_of(name)
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(f"--no-{flag[2:]}")
        elif isinstance(value, list):
            words += [flag, *map(_word, value)]
        elif value is not None:
            words += [flag, _word(value)]
    return tuple(words)


def flag_of(name: str) -> str:
    """Return the option that a key of ``args`` means.

    >>> flag_of("max_model_len"), flag_of("--seed")
    ('--max-model-len', '--seed')
    """
    return "--" + name.lstrip("-").replace("_", "-")


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def needs_text(question: Question) -> str:
    """Return what the model needs in a phrase: its weights, and the tokens it must hold at once."""
    job = question.job
    tokens = (job.context or question.request_tokens) * job.concurrency
    precision = published_format(question.facts) if job.precision == "auto" else job.precision
    weights = round(weight_bytes(question.facts, precision).total)
    cache = "" if question.facts.bidirectional else f", and a KV cache of {tokens:,} tokens"
    return f"{format_bytes(weights)} of weights{cache}"
