"""Files, folders and stdin: what is found, in which order, and where a problem is said to be."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from orchestrator.errors import Position, SpecError
from orchestrator.spec.load import Document, load, read
from orchestrator.spec.models import Task
from tests.spec.texts import place, problem_in, problems_in, service, task


def put(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def names(documents: tuple[Document, ...]) -> list[str]:
    return [document.spec.name for document in documents]


def volume(name: str) -> str:
    return f"type: volume\nname: {name}\n"


def failure(*paths: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load(paths)
    return caught.value


# --- files and folders ----------------------------------------------------------------------


def test_files_come_in_the_order_given(tmp_path: Path) -> None:
    b, a = put(tmp_path, "b.yaml", volume("b")), put(tmp_path, "a.yaml", volume("a") + "---\n" + volume("c"))

    assert names(load([b, a])) == ["b", "a", "c"]


def test_folders_are_searched_in_order_of_name(tmp_path: Path) -> None:
    for name in ("z.yaml", "a/b.yml", "a/a.yaml", "note.txt", ".hidden.yaml", ".git/x.yaml"):
        put(tmp_path, name, volume(name.replace("/", "-").partition(".")[0] or "hidden"))

    documents = load([str(tmp_path)])

    assert names(documents) == ["a-a", "a-b", "z"]
    assert documents[0].source.file == str(tmp_path / "a" / "a.yaml")


def test_what_is_no_file_is_passed_over_in_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", volume("a"))
    os.mkfifo(tmp_path / "b.yaml")  # to open it would be to wait for a writer

    assert names(load([str(tmp_path)])) == ["a"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = put(tmp_path, "a.yaml", volume("a"))

    assert names(load([path, str(tmp_path), path])) == ["a"]


def test_dash_is_stdin() -> None:
    documents = load(["-"], stdin=io.BytesIO(volume("a").encode()))

    assert documents[0].position == Position("<stdin>", 1, 1)


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    path = put(tmp_path, "in/a.yaml", task("files: [x.py, ../y.py]\nvolumes: [./data:/d, /abs:/e, named:/f]"))

    spec = load([path])[0].spec

    assert isinstance(spec, Task)
    assert [file.local_path for file in spec.files] == [f"{tmp_path}/in/x.py", f"{tmp_path}/y.py"]
    assert [mount.instance_path for mount in spec.volumes] == [f"{tmp_path}/in/data", "/abs", None]


def test_an_unknown_home_is_a_problem(tmp_path: Path) -> None:
    path = put(tmp_path, "a.yaml", task("files: ['~nobody-of-this-name/x']"))

    assert failure(path).problems[0].what.startswith("files[0].local_path: no home folder")


def test_a_hub_id_is_no_path(tmp_path: Path) -> None:
    path = put(tmp_path, "a.yaml", "type: service\nname: a\nmodel: org/name\n---\n"
               "type: service\nname: b\nmodel: ./weights\n")  # fmt: skip

    a, b = (document.spec.canonical()["model"] for document in load([path]))

    assert (a, b) == ("org/name", f"{tmp_path}/weights")


def test_every_problem_of_every_file_comes_at_once(tmp_path: Path) -> None:
    a = put(
        tmp_path, "a.yaml", task("nodes: none") + "---\n" + task("bogus: 1").replace("name: t", "name: u")
    )
    b = put(tmp_path, "b.yaml", b"\xff")
    c = put(tmp_path, "c.yaml", "a: b: c")
    missing = str(tmp_path / "missing.yaml")

    problems = failure(a, b, c, missing).problems

    assert [(problem.at.file, problem.at.line) for problem in problems] == [
        (a, 4), (a, 9), (b, 1), (c, 1), (missing, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["missing", "empty folder", "empty file", "comments only"])
def test_nothing_to_read_has_a_place(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    match kind:
        case "empty folder":
            path.mkdir()
        case "empty file":
            path.touch()
        case "comments only":
            path.write_text("# nothing\n---\n")

    (problem,) = failure(str(path)).problems

    assert problem.at == Position(str(path), 1, 1)
    assert problem.fix


def test_a_folder_called_like_a_file_is_searched(tmp_path: Path) -> None:
    put(tmp_path, "x.yaml/a.yaml", volume("a"))

    assert names(load([str(tmp_path / "x.yaml")])) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_said_to_be(tmp_path: Path) -> None:
    path = put(tmp_path, "a.yaml", volume("a"))
    Path(path).chmod(0)

    assert failure(path).problems[0].what == "permission denied"


def test_a_path_that_is_no_file_is_a_problem(tmp_path: Path) -> None:
    path = put(tmp_path, "a.yaml", volume("a")) + "/b.yaml"

    assert failure(path).problems[0].what == "not a directory"


def test_exit_code_of_a_bad_file_is_65(tmp_path: Path) -> None:
    assert failure(put(tmp_path, "a.yaml", "x")).exit_code == 65


def test_nothing_named_is_nothing_found() -> None:
    assert failure().problems[0].what == "no documents"


# --- names ----------------------------------------------------------------------------------


def test_two_documents_with_one_name_are_refused_with_both_places(tmp_path: Path) -> None:
    a, b = put(tmp_path, "a.yaml", task()), put(tmp_path, "b.yaml", service().replace("name: s", "name: t"))

    (problem,) = failure(a, b).problems

    assert problem.at == Position(b, 2, 7)
    assert problem.what == "a second run named 't'"
    assert problem.fix == f"the first is at {a}:2:7"


def test_a_volume_may_be_called_like_a_run() -> None:
    assert len(read(task() + "---\n" + volume("t"))) == 2


# --- places ---------------------------------------------------------------------------------


def test_documents_know_where_their_fields_stand() -> None:
    text = "# c\ntype: task\nname: t\ncommands:\n  - a\n  - b\nresources: {gpu: 1}\nenv: [A=1, B]\n"
    (document,) = read(text, file="x.yaml")

    places = {path: str(document.at(path)) for path in (
        "name", "commands[1]", "commands[7]", "resources.gpu", "resources.gpu.count", "env.B", "image", "",
    )}  # fmt: skip

    assert places == {
        "name": "x.yaml:3:7", "commands[1]": "x.yaml:6:5", "commands[7]": "x.yaml:5:3",
        "resources.gpu": "x.yaml:7:18", "resources.gpu.count": "x.yaml:7:18", "env.B": "x.yaml:8:12",
        "image": "x.yaml:2:1", "": "x.yaml:2:1",
    }  # fmt: skip
    assert document.line(document.at("name")) == "name: t"
    assert document.problem("resources.gpu", "too small").source_line == "resources: {gpu: 1}"


@pytest.mark.parametrize(
    ("line", "at", "what", "fix"),
    [
        ("replicas: two", (4, 11), "replicas: expected a whole number, got 'two'",
         "write a number or a range, for example 2 or 1..4"),
        ("traffic: {concurrency: '2'}", (4, 24), "traffic.concurrency: expected a whole number, got '2'",
         "write it without quotes: 2"),
        ("traffic: {concurrency: x}", (4, 24), "traffic.concurrency: expected a whole number, got 'x'",
         "write a number, such as 2"),
        ("traffic: {concurrency: 2.5}", (4, 24), "traffic.concurrency: expected a whole number, got 2.5",
         None),
        ("traffic: {concurrency: true}", (4, 24), "traffic.concurrency: expected a whole number, got true",
         None),
        ("traffic: {concurrency: 0}", (4, 24), "traffic.concurrency: expected at least 1, got 0", None),
        ("traffic: 7", (4, 10), "traffic: expected a mapping, got 7", "write key: value"),
        ("traffic:", (4, 9), "traffic: expected a mapping, got nothing",
         "give it a value, or remove the key"),
        ("priority: 101", (4, 11), "priority: expected at most 100, got 101", None),
        ("max_price: 0", (4, 12), "max_price: expected more than 0, got 0", None),
        ("max_price: '8'", (4, 12), "max_price: expected a number, got '8'", "write it without quotes: 8"),
        ("auth: yes", (4, 7), "auth: expected true or false, got 'yes'", "write true"),
        ("privileged: off", (4, 13), "privileged: expected true or false, got 'off'", "write false"),
        ("image: 3.12", (4, 8), "image: expected text, got 3.12", 'put it in quotes: "3.12"'),
        ("volumes: a:/b", (4, 10), "volumes: expected a list, got 'a:/b'",
         "write it as [a, b], or one - a line"),
        ("tags: [a]", (4, 7), "tags: expected a mapping, got a list", "write key: value"),
        ("engine: vlm", (4, 9), "engine: expected auto, vllm, tgi, nim, sglang or transformers, got 'vlm'",
         "did you mean 'vllm'?"),
        ("scaling: {metric: queue}", (4, 10), "missing key 'scaling.target'", "add target: …"),
        ("resources:\n  cuont: 2", (5, 3), "unknown key 'resources.cuont'",
         "did you mean cpu.count or gpu.count?"),
        ("resources: {gpus: 1}", (4, 13), "unknown key 'resources.gpus'", "did you mean 'gpu'?"),
        ("nodes: 2", (4, 1), "unknown key 'nodes'", "that is a key of task and fleet"),
        ("max-price: 2", (4, 1), "unknown key 'max-price'", "did you mean 'max_price'?"),
        ("zzzzzz: 2", (4, 1), "unknown key 'zzzzzz'",
         "what the engine itself takes goes into args: {zzzzzz: …}; docs/reference/spec.md lists the keys, as"
         " does 'modelyard schema'"),
        ("resources: {zzzzzz: 2}", (4, 13), "unknown key 'resources.zzzzzz'",
         "docs/reference/spec.md lists the keys, as does 'modelyard schema'"),
        ("backend: docker", (4, 1), "unknown key 'backend'", "did you mean 'backends'?"),
        ("max_model_len: 8192", (4, 1), "unknown key 'max_model_len'", "write model: {id: …, context: …}"),
        ("enviroment: {A: 1}", (4, 1), "unknown key 'enviroment'", "write env"),
        ("HF_TOKEN:", (4, 1), "unknown key 'HF_TOKEN'", "write env: [HF_TOKEN]"),
        ("traffic: {input_tokens: 16k}", (4, 25), "traffic.input_tokens: expected a whole number, got '16k'",
         "write 16384, or 16000"),
        ("max_price: $4", (4, 12), "max_price: expected a number, got '$4'", "write 4"),
        ("resources: {memory: 80G}", (4, 21),
         "resources.memory: expected a size with its unit, such as 16GB or 512MiB, got '80G'",
         "write 80GB or 80GiB"),
        ("max_duration: 1.5h", (4, 15),
         "max_duration: expected a duration such as 90s, 5m, 2h, 1d or 1w, got '1.5h'", "write 1h30m"),
        ("probes: [{path: /}]", (4, 11), "unknown key 'probes[0].path'", "write url"),
        ("max_duration: 12 hours", (4, 15),
         "max_duration: expected a duration such as 90s, 5m, 2h, 1d or 1w, got '12 hours'", "write 12h"),
        ("gpu: 2", (4, 1), "unknown key 'gpu'", "did you mean resources.gpu?"),
        ("precision: fp8", (4, 1), "unknown key 'precision'", "did you mean model.precision?"),
        ("python: 3.12", (4, 1), "unknown key 'python'",
         "write image: python:3.12, with the version you want"),
        ("docker: true", (4, 1), "unknown key 'docker'",
         "write privileged: true and an image such as docker:dind"),
        ("environment: {A: 1}", (4, 1), "unknown key 'environment'", "write env"),
        ("probes: [{}, {ulr: /}]", (4, 15), "unknown key 'probes[1].ulr'", "did you mean 'url'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_place(
    line: str, at: tuple[int, int], what: str, fix: str | None
) -> None:
    problem = problem_in(service(line))

    assert (place(problem), problem.what, problem.fix) == (at, what, fix)


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("lora_rank", "write adapter: {type: lora, rank: 16}"),
        ("max_seq_length", "write sequence_length"),
        ("learning_rate", "what the trainer itself takes goes into args: {learning_rate: …}; "),
    ],
)
def test_keys_of_trainers_lead_to_ours(key: str, fix: str) -> None:
    problem = problem_in(f"type: task\nname: a\ntrain: {{model: a/b, dataset: c/d, {key}: 1}}")

    assert (problem.what, (problem.fix or "").startswith(fix)) == (f"unknown key 'train.{key}'", True)


@pytest.mark.parametrize(
    ("key", "fix"), [("name", "write id: a hub id or a folder"), ("dtype", "write precision")]
)
def test_keys_that_others_give_a_model_lead_to_ours(key: str, fix: str) -> None:
    problem = problem_in(f"type: service\nname: a\nmodel: {{id: a/b, {key}: fp8}}")

    assert (place(problem), problem.what, problem.fix) == ((3, 18), f"unknown key 'model.{key}'", fix)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("name: a", "missing key 'type'", "one of task, service, dev-environment, fleet, volume"),
        ("type: srvice", "type: unknown type 'srvice'", "did you mean 'service'?"),
        ("type: 3", "type: unknown type 3", "one of task, service, dev-environment, fleet, volume"),
        ("type: [task]", "type: unknown type a list", "one of task, service, dev-environment, fleet, volume"),
        ("- a", "expected a mapping, got a list", "write key: value"),
        ("hello", "expected a mapping, got 'hello'", "write key: value"),
        ("type: volume", "missing key 'name'", "add name: …"),
        ("type: volume\nname:", "name: expected text, got nothing", "give it a value, or remove the key"),
    ],
)
def test_documents_of_no_kind_are_refused(text: str, what: str, fix: str) -> None:
    problem = problem_in(text)

    assert (problem.what, problem.fix) == (what, fix)


def test_values_from_an_alias_are_blamed_where_they_are_written() -> None:
    text = "type: task\nname: t\nimage: &i 3.12\nworking_dir: *i\n"

    assert [(place(problem), problem.what.partition(":")[0]) for problem in problems_in(text)] == [
        ((3, 8), "image"), ((3, 8), "working_dir"),
    ]  # fmt: skip


def test_a_slip_hides_neither_other_fields_nor_other_rules() -> None:
    text = "type: service\nname: S\ncommands: [a]\nshell: zsh\nauth: maybe\n"

    assert [problem.what.partition(":")[0] for problem in problems_in(text)] == [
        "a service needs the port its program listens on", "name", "shell", "auth",
    ]  # fmt: skip


def test_a_slip_is_not_held_against_rules_that_read_it() -> None:
    problems = problems_in("type: service\nname: s\nmodel: {idd: x}\n")

    assert [problem.what for problem in problems] == ["missing key 'model.id'", "unknown key 'model.idd'"]


def test_thousands_of_documents_load() -> None:
    text = "---\n".join(f"type: service\nname: s{n}\nmodel: org/name\nresources: {{gpu: 'H100:2'}}\n"
                        for n in range(2000))  # fmt: skip

    assert len(read(text)) == 2000


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("env: {HF_TOKEN: hf_abc, A: 1, 9: x}", "env: {HF_TOKEN: ******, A: 1, 9: x}"),
        ("env: ['API_KEY=k1', '9=x']", "env: ['API_KEY=***, '9=x']"),
        ("env: {password: 'a, b', 9: x}", "env: {password: ******, 9: x}"),
        ("env: {DB_PASSWORD: '${{ secrets.P }}', 9: x}", "env: {DB_PASSWORD: '${{ secrets.P }}', 9: x}"),
        ("env: {input_tokens: 5, monkey: b, 9: x}", "env: {input_tokens: 5, monkey: b, 9: x}"),
    ],
)
def test_lines_are_shown_with_secrets_covered(line: str, shown: str) -> None:
    assert problem_in(task(line)).source_line == shown
