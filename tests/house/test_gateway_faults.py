"""Every promise of the gateway has a broken twin that its test catches."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.http_parser import HttpRequestParserPy

from orchestrator.engines import exposition
from orchestrator.gateway import affinity, keys, model_key, routes, sampling, scaling, wire
from orchestrator.gateway.limits import Buckets
from orchestrator.gateway.routes import Replica, ServiceRoute
from orchestrator.gateway.server import exchange, gateway, inbound, metrics, outbound, scaler, tracing
from orchestrator.gateway.server.exchange import Exchange
from orchestrator.loop import adapters
from orchestrator.reconcile.values import Job, JobState, Run
from tests.gateway import (
    clients,
    test_adapters,
    test_affinity,
    test_failing,
    test_figures,
    test_moving,
    test_parts,
    test_passing,
    test_scale,
    test_scaling,
    test_tracing,
    test_wire,
)

Patch = pytest.MonkeyPatch
HEADS = {
    "two lengths": test_wire.START + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "both": test_wire.START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
}


def in_a_folder(test: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        test(Path(folder))


def lets_a_second_model_through(patch: Patch) -> None:
    patch.setattr(model_key.ModelKey, "_count", lambda self: None)


def reads_keys_as_they_are_spelled(patch: Patch) -> None:
    def count(self: model_key.ModelKey) -> None:
        self._found += self._key == b"model"
        if self._found > 1:
            self.name = None
            self._give_up()

    patch.setattr(model_key.ModelKey, "_count", count)


def shares_with_nobody(patch: Patch) -> None:
    real = routes.make_routes

    def made(services: Any, **more: Any) -> Any:
        found = real(services, **more)
        return replace(found, services={n: replace(s, shares=False) for n, s in found.services.items()})

    patch.setattr(test_adapters, "make_routes", made)


def passes_what_a_path_names_unread(patch: Patch) -> None:
    patch.setattr(
        Exchange,
        "_look_for_model",
        lambda self: self._pass_unnamed(self.inbound.gateway.routes.services["chat"]),
    )


def repeats_everything(patch: Patch) -> None:
    patch.setattr(Exchange, "_may_repeat", lambda self: True)


def never_gives_up(patch: Patch) -> None:
    patch.setattr(exchange, "ATTEMPTS", 99)


def never_repeats(patch: Patch) -> None:
    patch.setattr(exchange, "ATTEMPTS", 1)
    patch.setattr(Exchange, "_may_repeat", lambda self: False)


def passes_every_path(patch: Patch) -> None:
    patch.setattr(ServiceRoute, "allows", lambda self, path: True)


def opens_everything(patch: Patch) -> None:
    patch.setattr(keys.Key, "opens", lambda self, service: True)


def routes_to_what_stops(patch: Patch) -> None:
    def replica(run: Run, job: Job, *, loads: bool) -> Replica | None:
        where = job.ports.get(run.template.launch.ports[0].container)
        return Replica(job.name, *where) if where and job.state is JobState.READY and not job.node else None

    patch.setattr(routes, "_replica", replica)


def prefers_by_name(patch: Patch) -> None:
    def make(services: list[ServiceRoute], *, serial: int = 0) -> routes.Routes:
        ordered = sorted(services, key=lambda s: s.name)
        by_model: dict[str, str] = {}
        for service in ordered:
            for model in service.models:
                by_model.setdefault(model, service.name)
        return routes.Routes({s.name: s for s in ordered}, by_model, serial)

    patch.setattr(routes, "make_routes", make)


def joins_lengths(patch: Patch) -> None:
    patch.setattr(wire, "_second", lambda name, first, value: first)


def takes_the_length_of_both(patch: Patch) -> None:
    real, both = wire._request_body, {b"content-length", b"transfer-encoding"}

    def body(taken: dict[bytes, bytes], old: bool) -> Any:
        return ("length", 5) if both <= taken.keys() else real(taken, old)

    patch.setattr(wire, "_request_body", body)


def prefers_length(patch: Patch) -> None:
    patch.setattr(wire, "_request_body", lambda taken, old: ("length", int(taken[b"content-length"])))


def takes_any_response(patch: Patch) -> None:
    patch.setattr(wire, "_response_body", lambda status, method, coding, length: ("length", 5))


def keeps_hop_fields(patch: Patch) -> None:
    patch.setattr(wire, "_without_named", lambda kept, connection: kept)


def passes_extensions(patch: Patch) -> None:
    def feed(self: wire.Chunks, piece: bytes, right: Any = wire.Chunks.feed) -> bytes:
        payload: bytes = right(self, piece)
        self.clean = True
        return payload

    patch.setattr(wire.Chunks, "feed", feed)


def finds_inner_models(patch: Patch) -> None:
    def look(self: model_key.ModelKey, body: bytes) -> bool:
        self.name = "inner" if b'"model"' in body else None
        return True

    patch.setattr(model_key.ModelKey, "look", look)


def never_limits(patch: Patch) -> None:
    patch.setattr(Buckets, "take", lambda self, rate, client, now_s: 0.0)


def picks_the_first(patch: Patch) -> None:
    patch.setattr(gateway.Desk, "pick", lambda self, tried, now: self.lanes[0] if self.lanes else None)


def reads_on(patch: Patch) -> None:
    patch.setattr(Exchange, "hold_response", lambda self, hold: None)


def sends_on(patch: Patch) -> None:
    patch.setattr(outbound.Outbound, "pause_writing", lambda self: None)


def answers_the_deaf(patch: Patch) -> None:
    def pause(self: inbound.Inbound) -> None:
        if self.exchange is not None:
            self.exchange.hold_response(True)

    patch.setattr(inbound.Inbound, "pause_writing", pause)


def lets_generations_run(patch: Patch) -> None:
    patch.setattr(outbound.Outbound, "drop", lambda self: setattr(self, "exchange", None))


def ends_streams_quietly(patch: Patch) -> None:
    patch.setattr(exchange, "error_event", lambda why: wire.LAST_CHUNK)


def ends_answers_quietly(patch: Patch) -> None:
    def break_off(self: Exchange, why: str) -> None:
        self.take_piece(b"", None, True)
        self.end()

    patch.setattr(Exchange, "_break_off", break_off)


def counts_no_tokens(patch: Patch) -> None:
    patch.setattr(exchange, "tokens_of", lambda tail: None)


def passes_keys_on(patch: Patch) -> None:
    patch.setattr(wire, "_TAKEN", wire._TAKEN - {b"authorization"})


def believes_anyone(patch: Patch) -> None:
    def address(self: gateway.Gateway, peer: str, request: wire.Request) -> str:
        return request.taken.get(b"x-forwarded-for", b"").decode() or peer

    patch.setattr(gateway.Gateway, "client_address", address)


def queues_without_end(patch: Patch) -> None:
    patch.setattr(test_failing, "QUICK", gateway.Limits(queue=10**6, queue_s=0.3))


def shrinks_at_once(patch: Patch) -> None:
    patch.setattr(scaling, "_shrink", lambda rule, *_: scaling.Scale(max(rule.least, 1), "now"))


def takes_silence_for_quiet(patch: Patch) -> None:
    patch.setattr(scaling, "_now", lambda rule, *_: (rule.least, "quiet"))
    patch.setattr(scaling, "_shrink", lambda rule, *_: scaling.Scale(rule.least, "quiet"))


def forgets_what_runs(patch: Patch) -> None:
    right = scaling._shrink

    def shrink(rule: scaling.Rule, *rest: Any) -> scaling.Scale:
        return right(replace(rule, slots=10**6), *rest)

    patch.setattr(scaling, "_shrink", shrink)


def holds_nothing(patch: Patch) -> None:
    patch.setattr(scaling.Rule, "held_s", lambda rule, since_up_s: 1.0)


def believes_every_window(patch: Patch) -> None:
    patch.setattr(scaling, "DOUBT", 0.0)
    patch.setattr(scaling, "TOLERANCE", 0.0)


def sleeps_on(patch: Patch) -> None:
    patch.setattr(scaling, "_wake", lambda rule, fresh: scaling.Scale(0, "asleep"))


def adds_one_by_one(patch: Patch) -> None:
    right = scaling._replicas_for
    patch.setattr(scaling, "_replicas_for", lambda *a: min(right(*a), a[3] + 1))


def takes_silence_for_nothing(patch: Patch) -> None:
    patch.setattr(sampling, "_sum", lambda values, count: sum(value or 0 for value in values))


def counts_both_spellings(patch: Patch) -> None:
    patch.setattr(exposition, "_first", lambda found, names: [v for n in names for v in found.get(n, ())])


def writes_over_what_moved(patch: Patch) -> None:
    def commit(self: scaler.Scaler, name: str, before: int, decided: scaling.Scale) -> bool:
        run = self._store.run(name)
        self._store.commit([scaler.scaled(run, decided, now=self._clock())])
        return True

    patch.setattr(scaler.Scaler, "_commit", commit)


def takes_no_time(patch: Patch) -> None:
    patch.setattr(gateway.Gateway, "_time", lambda self, exchange, desk, tokens: None)


def labels_by_model(patch: Patch) -> None:
    def settle(self: gateway.Gateway, exchange: Exchange, desk: Any, status: int, tokens: Any) -> None:
        self.refused[exchange.model or exchange.request.path.decode()] = 1  # type: ignore[index]  # the fault

    patch.setattr(gateway.Gateway, "settle", settle)


def counts_nothing_twice_over(patch: Patch) -> None:
    right = metrics._family
    patch.setattr(
        metrics, "_family", lambda name, kind, text, samples: right(name, kind, text, [*samples] * 2)
    )


def forgets_the_weight(patch: Patch) -> None:
    patch.setattr(gateway.Desk, "pick", lambda self, tried, now, _: self._least(self.lanes, tried, now))


def asks_any_replica(patch: Patch) -> None:
    patch.setattr(Exchange, "adapter", "")


def waits_in_one_line(patch: Patch) -> None:
    def first(self: gateway.Gateway, desk: gateway.Desk) -> Exchange | None:
        found = next(iter(desk.waiting))
        return found if desk.pick((), self.now, found.adapter) else None

    patch.setattr(gateway.Gateway, "_next_waiting", first)


def forgets_revisions(patch: Patch) -> None:
    right = adapters.differences
    patch.setattr(adapters, "differences", lambda wanted, loaded, told: right(wanted, loaded))


def drops_nothing(patch: Patch) -> None:
    right = adapters.differences
    patch.setattr(adapters, "differences", lambda wanted, loaded, told: ((), right(wanted, loaded, told)[1]))


def forgets_beginnings(patch: Patch) -> None:
    patch.setattr(affinity.Prefixes, "find", lambda self, begun: None)


def clings_to_beginnings(patch: Patch) -> None:
    patch.setattr(gateway, "BUSIER", 10_000)


def parts_spans(patch: Patch) -> None:
    right = tracing.Traced.ask

    def ask(self: tracing.Traced, exchange: Exchange) -> bytes:
        right(self, exchange)
        return b"traceparent: 00-%032x-%016x-01\r\n" % (1, 1)

    patch.setattr(tracing.Traced, "ask", ask)


CAUGHT: list[tuple[Callable[[Patch], None], Callable[[], object]]] = [
    (repeats_everything, test_failing.test_an_order_of_the_users_own_program_is_not_placed_twice),
    (never_gives_up, test_failing.test_a_request_that_brings_replicas_down_does_not_reach_all),
    (
        never_repeats,
        lambda: test_failing.test_a_replica_that_fails_before_a_byte_costs_nobody_a_request(
            test_failing.hang_up
        ),
    ),
    (
        passes_every_path,
        lambda: test_passing.test_what_is_refused_reaches_no_replica(
            clients.request("/v1/load_lora_adapter", b'{"model": "llama"}'), 404, "path_not_served"
        ),
    ),
    (
        opens_everything,
        lambda: test_passing.test_what_is_refused_reaches_no_replica(
            clients.completion(key="my-bob"), 403, "service_not_open"
        ),
    ),
    (
        routes_to_what_stops,
        lambda: test_parts.test_no_new_request_goes_to_a_replica_that_is_not_ready_or_is_to_stop(
            {"stop_asked_at": test_parts.T0}
        ),
    ),
    (prefers_by_name, test_parts.test_a_model_goes_to_a_service_that_lives_before_one_that_ended),
    (
        joins_lengths,
        lambda: test_wire.test_what_could_be_read_in_two_ways_is_refused(HEADS["two lengths"], 400),
    ),
    (
        takes_the_length_of_both,
        lambda: test_wire.test_what_we_accept_aiohttp_reads_as_the_same_one_message(HttpRequestParserPy),
    ),
    (prefers_length, lambda: test_wire.test_what_could_be_read_in_two_ways_is_refused(HEADS["both"], 400)),
    (
        takes_any_response,
        lambda: test_failing.test_an_answer_that_can_be_read_in_two_ways_is_not_passed_on(
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"
        ),
    ),
    (keeps_hop_fields, test_passing.test_nothing_about_the_connection_or_the_key_reaches_the_replica),
    (passes_keys_on, test_passing.test_nothing_about_the_connection_or_the_key_reaches_the_replica),
    (
        passes_extensions,
        lambda: test_wire.test_extensions_and_trailers_are_read_and_not_passed_on(b"5;e=1\r\nhello\r\n"),
    ),
    (finds_inner_models, test_parts.test_a_model_that_is_not_at_the_top_is_none),
    (never_limits, test_parts.test_no_window_lets_more_through_than_rate_and_burst),
    (never_limits, test_passing.test_a_client_that_asks_too_often_is_told_when_to_come_back),
    (picks_the_first, test_passing.test_the_replica_with_the_least_to_do_is_asked),
    (picks_the_first, test_moving.test_a_replica_gets_no_more_at_once_than_it_may),
    (reads_on, test_moving.test_a_slow_reader_slows_the_replica_and_fills_no_memory),
    (sends_on, test_moving.test_a_slow_replica_slows_the_client),
    (answers_the_deaf, test_moving.test_a_client_that_pipelines_and_does_not_read_is_not_read_from),
    (lets_generations_run, test_failing.test_a_client_that_leaves_ends_the_generation),
    (ends_streams_quietly, test_failing.test_a_stream_that_breaks_ends_with_an_error_event),
    (
        ends_answers_quietly,
        lambda: test_failing.test_an_answer_that_breaks_is_not_taken_for_a_whole_one(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        ),
    ),
    (counts_no_tokens, test_passing.test_metrics_take_a_key_that_opens_everything),
    (believes_anyone, test_passing.test_clients_behind_a_trusted_proxy_are_told_apart),
    (shrinks_at_once, test_scaling.test_one_low_moment_takes_nothing_away),
    (takes_silence_for_quiet, test_scaling.test_nothing_is_scaled_without_data),
    (forgets_what_runs, test_scaling.test_what_runs_keeps_its_place),
    (
        holds_nothing,
        lambda: test_scaling.test_without_a_delay_a_replica_is_held_for_a_third_of_what_one_takes_to_come(
            30.0, 4
        ),
    ),
    (believes_every_window, test_scaling.test_what_chance_may_add_adds_no_replica),
    (
        sleeps_on,
        lambda: test_scaling.test_from_zero_the_first_request_wakes_it_whatever_the_delays(1.0, 1),
    ),
    (adds_one_by_one, test_scaling.test_replicas_are_added_at_once_and_all_of_them),
    (
        takes_silence_for_nothing,
        test_scale.test_engines_that_all_are_silent_make_nothing_known_but_what_the_gateway_knows,
    ),
    (counts_both_spellings, test_scale.test_of_two_spellings_one_is_counted),
    (
        writes_over_what_moved,
        lambda: in_a_folder(test_scale.test_a_run_that_was_stopped_meanwhile_is_not_scaled),
    ),
    (forgets_the_weight, test_moving.test_a_canary_gets_its_part_of_the_requests_and_no_more),
    (takes_no_time, test_figures.test_times_are_counted_where_they_belong),
    (labels_by_model, test_figures.test_nothing_that_a_client_says_becomes_a_label),
    (
        counts_nothing_twice_over,
        test_figures.test_figures_are_well_formed_and_every_series_is_told_once,
    ),
    (queues_without_end, test_failing.test_the_queue_is_bounded_and_says_when_to_come_back),
    (
        lets_a_second_model_through,
        lambda: test_adapters.names_two("/v1/completions", test_adapters.TWICE[3]),
    ),
    (
        reads_keys_as_they_are_spelled,
        lambda: test_adapters.names_two("/v1/completions", test_adapters.TWICE[1]),
    ),
    (
        shares_with_nobody,
        test_adapters.test_a_service_on_a_base_answers_by_its_path_to_its_own_models_alone,
    ),
    (
        passes_what_a_path_names_unread,
        test_adapters.test_an_adapter_is_asked_for_by_its_service_s_path_as_by_its_name,
    ),
    (asks_any_replica, test_adapters.test_an_adapter_s_requests_go_only_where_it_is_loaded),
    (
        waits_in_one_line,
        test_adapters.test_who_waits_for_an_adapter_holds_up_nobody_and_is_served_once_it_is_loaded,
    ),
    (
        forgets_revisions,
        test_adapters.test_other_weights_at_the_same_path_are_loaded_anew,
    ),
    (
        drops_nothing,
        lambda: test_adapters.test_an_engine_comes_to_serve_what_is_wanted_and_nothing_else(
            "vllm", test_adapters.VLLM
        ),
    ),
    (forgets_beginnings, test_affinity.test_conversations_stay_where_they_began),
    (
        clings_to_beginnings,
        test_affinity.test_a_replica_that_is_busier_is_spared_and_one_that_leaves_is_forgotten,
    ),
    (parts_spans, test_tracing.test_a_request_is_a_span_of_its_client_s_trace_and_the_replica_s_parent),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what a failed test leaves open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("plant", "test"), CAUGHT, ids=[plant.__name__ for plant, _ in CAUGHT])
def test_a_planted_fault_is_caught(
    plant: Callable[[Patch], None], test: Callable[[], object], monkeypatch: Patch
) -> None:
    monkeypatch.setattr(clients, "PATIENCE_S", 4.0)
    plant(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)) as caught:
        test()
    del caught  # it holds the frames of the test, and they what it left open:
    gc.collect()  # that is found here, and not in a later test
