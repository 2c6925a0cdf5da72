"""Questions to real servers on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from orchestrator.backend import Instance, Phase, Probe
from orchestrator.loop.probes import FIRST_S, NO_ANSWER, PATIENCE, Prober, ask

HTTP = Probe("http", 80, path="/health", interval_s=5.0)


class Server(BaseHTTPRequestHandler):
    """Answers with the status that the path's last part names, else 200."""

    def do_GET(self) -> None:
        last = self.path.partition("?")[0].rsplit("/", 1)[-1]
        self.send_response(int(last) if last.isdigit() else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """An HTTP server on a free port."""
    with HTTPServer(("127.0.0.1", 0), Server) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield ("127.0.0.1", http.server_port)
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "trouble"),
    [
        ("/", ""),
        ("/302", ""),
        ("/404", "GET /404 on port 80 says 404"),
        ("/a/503?key=1", "GET /a/503 on port 80 says 503"),
    ],
)
def test_http_succeeds_on_2xx_and_3xx_and_else_says_what_came(
    server: tuple[str, int], path: str, trouble: str
) -> None:
    assert ask(replace(HTTP, path=path), server) == trouble


def test_tcp_succeeds_on_a_server_that_waits_for_us(server: tuple[str, int]) -> None:
    assert ask(Probe("tcp", 80), server) == ""


def test_nobody_there_is_no_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert ask(Probe("tcp", 80), unused.getsockname()) == NO_ANSWER
        assert ask(HTTP, unused.getsockname()) == NO_ANSWER


def test_a_proxy_that_hangs_up_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert ask(Probe("tcp", 80), listener.getsockname()) == NO_ANSWER
        thread.join()


class Now(Executor):
    """Answers at once with what the test says."""

    def __init__(self) -> None:
        self.answers: list[bool] = []
        self.trouble = NO_ANSWER
        self.asked = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked += 1
        future: Future[Any] = Future()
        future.set_result("" if self.answers.pop(0) else self.trouble)
        return future


class Patient:
    """One launch, a clock moved by hand, and the answers it will give."""

    def __init__(self, *probes: Probe, before: bool = False) -> None:
        self.pool, self.time, self.probes, self.before = Now(), 0.0, probes, before
        self.prober = Prober(self.pool, lambda: self.time, lambda: None)
        ports = {80: ("127.0.0.1", 1)}
        self.instance = Instance("chat-0-0-0", "chat", 0, 0, 0, "h", Phase.RUNNING, ports=ports)

    def after(self, *answers: bool) -> bool:
        """Give these answers, each when it is asked for, and return whether it is ready."""
        for answer in answers:
            self.time += self.prober.next_s() or 0.0
            self.pool.answers = [answer] * len(self.probes)
            self.look()
            self.look()
        return self.look()

    def look(self) -> bool:
        return self.prober.is_ready(self.instance, self.probes, before=self.before)


def test_one_good_answer_makes_ready_and_three_bad_ones_unmake_it() -> None:
    patient = Patient(HTTP)
    assert patient.after(False, True)
    assert patient.after(False, False)
    assert not patient.after(False)


def test_ready_after_counts_good_answers_in_a_row() -> None:
    patient = Patient(replace(HTTP, ready_after=3))
    assert not patient.after(True, True, False, True, True)
    assert patient.after(True)


def test_every_probe_has_to_succeed() -> None:
    patient = Patient(HTTP, replace(HTTP, path="/other"))
    patient.pool.answers = [True, False]
    patient.look()
    assert not patient.look()


def test_until_ready_is_not_asked_again() -> None:
    patient = Patient(replace(HTTP, until_ready=True))
    assert patient.after(True)
    patient.time += 1000
    asked = patient.pool.asked
    assert patient.look()
    assert (patient.pool.asked, patient.prober.next_s()) == (asked, None)


def test_it_is_asked_often_at_first_and_at_its_interval_once_ready() -> None:
    patient = Patient(HTTP)
    patient.after(False)
    assert patient.prober.next_s() == pytest.approx(FIRST_S)
    patient.time += 100
    patient.after(False)
    assert patient.prober.next_s() == pytest.approx(PATIENCE * 100, rel=0.1)
    patient.time += 10_000
    patient.after(False)
    assert patient.prober.next_s() == pytest.approx(HTTP.interval_s)


def test_what_another_process_found_ready_is_ready_until_it_does_not_answer() -> None:
    patient = Patient(HTTP, before=True)
    patient.pool.answers = [False]
    assert patient.look()
    assert not patient.after(False, False, False)


def test_what_it_says_in_place_of_a_good_answer_is_told() -> None:
    patient = Patient(HTTP)
    patient.after(False)
    assert patient.prober.trouble("chat-0-0-0") == ""
    patient.pool.trouble = "GET /health on port 80 says 503"
    patient.after(False)
    assert patient.prober.trouble("chat-0-0-0") == "GET /health on port 80 says 503"
    patient.after(True)
    assert patient.prober.trouble("chat-0-0-0") == ""
    patient.after(False, False, False)
    patient.time += 1_000
    assert (patient.prober.silence("chat-0-0-0") or "").startswith("GET /health on port 80 says 503 for 10")


def test_silence_while_its_machine_is_cut_off_is_not_held_against_it() -> None:
    patient = Patient(Probe(port=80))
    assert patient.after(True)
    patient.after(False, False, False)
    patient.time += 1_000
    assert patient.prober.silence("chat-0-0-0") is not None
    patient.prober.excuse("chat-0-0-0")
    assert patient.prober.silence("chat-0-0-0") is None


def test_the_gone_are_forgotten() -> None:
    patient = Patient(HTTP)
    patient.after(True)
    patient.prober.forget([])
    assert patient.prober.next_s() is None
