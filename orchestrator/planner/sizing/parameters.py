"""How many parameters sit in each part of a model, brought to its known total."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.catalog.parameters import Parameters, parameters
from orchestrator.catalog.values import ModelFacts

_LAYER_PARTS = ("attention", "mixer", "dense", "experts", "shared", "router", "other")


def count_parts(facts: ModelFacts) -> Parameters:
    """Return the parameters of each part; they add up to ``facts.parameters`` where it is known.

    Embeddings, head and vision tower are exact from their shapes; what the shapes of the layers
    leave open (an unknown expert width, a token mixer we do not spell out) carries the rest.

    >>> llama = ModelFacts("llama-3.1-8b", "LlamaForCausalLM", 32, 4096, 14336, 32, 8, 128, 128256)
    >>> count_parts(llama).total
    8030261248
    """
    held = _COUNTED.get(id(facts))
    if held is not None and held[0] is facts:
        return held[1]
    parts = _brought_to_total(facts)
    if len(_COUNTED) >= 1024:
        _COUNTED.clear()
    _COUNTED[id(facts)] = (facts, parts)
    return parts


_COUNTED: dict[int, tuple[ModelFacts, Parameters]] = {}
"""Counts by the identity of the facts, which are kept with them so that it stays theirs: a plan
asks for the same model hundreds of times."""


def _brought_to_total(facts: ModelFacts) -> Parameters:
    counted = parameters(facts)
    if facts.parameters is None or facts.parameters == counted.total:
        return counted
    rest = facts.parameters - counted.total
    unknown = _open_part(facts, counted)
    if unknown is not None and rest > 0:
        return replace(counted, **{unknown: rest})
    layers = sum(getattr(counted, part) for part in _LAYER_PARTS)
    target = layers + rest
    if layers <= 0 or target <= 0:
        return replace(counted, dense=max(0, counted.dense + rest))
    return replace(counted, **{part: getattr(counted, part) * target // layers for part in _LAYER_PARTS})


def _open_part(facts: ModelFacts, counted: Parameters) -> str | None:
    if facts.experts and not counted.experts:
        return "experts"
    if not facts.experts and not counted.dense:
        return "dense"
    if "linear" in facts.kinds() and not counted.mixer:
        return "mixer"
    return None


def expert_layers(facts: ModelFacts) -> int:
    """Return how many layers hold routed experts."""
    return sum(1 for feed in facts.feeds() if feed in ("experts", "both")) if facts.experts else 0


def speculative_parameters(facts: ModelFacts) -> int:
    """Return the parameters of multi-token-prediction layers: on disk, loaded only to speculate.

    A config that has some says so in ``extra["num_nextn_predict_layers"]``.
    """
    layers = facts.extra.get("num_nextn_predict_layers")
    if not isinstance(layers, int) or not layers:
        return 0
    counted = count_parts(facts)
    routed = expert_layers(facts)
    block = counted.experts // routed if routed else counted.dense // max(1, facts.layers)
    return layers * (block + counted.attention // max(1, facts.layers) + 2 * facts.hidden**2)
