"""Training as a user meets it: what is refused before it starts, what it leaves, and who uses that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.facts.hub_server import FakeHub, serving

LEFT = {
    "artifacts": [
        {"kind": "adapter", "path": ".", "bytes": 2048, "sha256": "a" * 64},
        {"kind": "state", "path": "checkpoint-9", "bytes": 1, "sha256": "b" * 64, "metrics": {"loss": 1.5}},
    ],
    "base": {"id": "Qwen/Qwen3-8B", "revision": "c0ffee"},
    "dataset": {"id": "org/rows", "revision": "f00d"},
}
MERGED = {"kind": "merged", "path": "merged", "bytes": 4096, "sha256": "c" * 64}
TRAIN = """\
type: task
name: sft
train:
  method: {method}
  model: Qwen/Qwen3-8B
  dataset: {dataset}
  adapter: lora
  args: {args}
  output: {output}
"""
SERVE = "type: service\nname: chat\nengine: {engine}\nmodel: {model}\n"


def spec(method: str = "sft", dataset: str = "org/rows", args: str = "{}", output: str = "results") -> str:
    return TRAIN.format(method=method, dataset=dataset, args=args, output=output)


@pytest.fixture
def farm(cli: Cli) -> Cli:
    """A prompt with a place that has a GPU, and on which training says what it left."""
    printed(cli, LEFT)
    return cli


def printed(cli: Cli, *facts: object, exit_code: int = 0) -> None:
    """Let training on the place print these lines of ours and end."""
    script = {"prints": ["hello", *(f"modelyard: {json.dumps(fact)}" for fact in facts)], "run_s": 0.0}
    gpu = {
        "instance_type": "g",
        "cpu": 8,
        "memory_bytes": 2**36,
        "accelerator": "H100-80GB",
        "vendor": "nvidia",
    }
    offer = {**gpu, "count": 4, "vram_bytes": 85 * 10**9, "disk_bytes": 2**40, "divisible": True}
    place = {
        "type": "sim", "state": str(cli.folder / "sim.jsonl"), "offers": [offer],
        "script": {
            "sft-*": {**script, "exit_code": exit_code}, "chat-*": {"ready_s": 0.0}, "hello-*": {"run_s": 0.0}
        },
    }  # fmt: skip
    (cli.folder / "config.yaml").write_text(json.dumps({"backends": [place]}))


def rows(cli: Cli, *each: object) -> str:
    return cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in each))


def test_what_training_left_is_on_record(farm: Cli) -> None:
    result = farm("apply", "-y", "-f", farm.write("sft.yaml", spec()))
    assert result.code == 0, result.err
    shown = json.loads(farm("show", "sft", "--json").out)["run"]["artifacts"]
    assert [(each["kind"], each["sha256"][:1], each["location"]) for each in shown] == [
        ("adapter", "a", "results"),
        ("state", "b", "results"),
    ]
    assert shown[0]["base"] == {"id": "Qwen/Qwen3-8B", "revision": "c0ffee"}
    assert shown[0]["dataset"] == {"id": "org/rows", "revision": "f00d"}
    text = farm("show", "sft").out
    assert "metrics  loss 1.5" in text
    assert "base     Qwen/Qwen3-8B @ c0ffee" in text


def test_what_failed_training_said_is_not_on_record(cli: Cli) -> None:
    printed(cli, LEFT, exit_code=1)
    assert cli("apply", "-y", "-f", cli.write("sft.yaml", spec())).code == 1
    assert json.loads(cli("show", "sft", "--json").out)["run"]["artifacts"] == []


def test_a_service_serves_what_a_run_left_as_an_adapter(farm: Cli) -> None:
    farm("apply", "-y", "-f", farm.write("sft.yaml", spec()))
    file = farm.write("chat.yaml", SERVE.format(engine="vllm", model="run://sft"))
    result = farm("plan", "--json", "-f", file)
    assert result.code == 0, result.err
    plan = json.loads(result.out)["runs"][0]
    assert plan["model"]["id"] == "Qwen/Qwen3-8B"
    words = " ".join(plan["engine"]["command"])
    assert "sft=/modelyard/adapters/sft" in words.replace('"', "")


def test_a_service_serves_the_merged_model_where_there_is_one(cli: Cli) -> None:
    printed(cli, {**LEFT, "artifacts": [*LEFT["artifacts"], MERGED]})
    cli("apply", "-y", "-f", cli.write("sft.yaml", spec()))
    file = cli.write("chat.yaml", SERVE.format(engine="vllm", model="run://sft"))
    result = cli("plan", "--json", "-f", file)
    assert result.code == 0, result.err
    words = json.loads(result.out)["runs"][0]["engine"]["command"]
    assert "/modelyard/model/merged" in words


def test_tuning_again_changes_who_uses_it(farm: Cli) -> None:
    farm("apply", "-y", "-f", farm.write("sft.yaml", spec()))
    file = farm.write("chat.yaml", SERVE.format(engine="vllm", model="run://sft"))
    assert farm("apply", "-y", "-d", "-f", file).code == 0  # a simulated engine loads nothing
    assert farm("plan", "--detailed-exitcode", "-f", file).code == 0
    other = {"kind": "adapter", "path": ".", "bytes": 2048, "sha256": "d" * 64}
    printed(farm, {**LEFT, "artifacts": [other]})
    assert farm("apply", "-y", "--rerun", "-f", str(farm.folder / "sft.yaml")).code == 0
    assert farm("plan", "--detailed-exitcode", "-f", file).code == 2


@pytest.mark.parametrize(
    ("engine", "model", "said"),
    [
        ("vllm", "run://nobody", "no run 'nobody' on record has left a model"),
        ("transformers", "run://sft", "run 'sft' left an adapter, and a whole model is needed here"),
    ],
)
def test_what_a_run_did_not_leave_cannot_be_used(farm: Cli, engine: str, model: str, said: str) -> None:
    farm("apply", "-y", "-f", farm.write("sft.yaml", spec()))
    result = farm("plan", "-f", farm.write("chat.yaml", SERVE.format(engine=engine, model=model)))
    assert (result.code, said in result.err) == (65, True), result.err
    assert "chat.yaml:4:8" in result.err


@pytest.mark.parametrize(
    ("method", "row", "said"),
    [
        ("dpo", {"prompt": "a", "chosen": "b"}, "dpo needs 'chosen' and 'rejected', 'rejected' is missing"),
        ("dpo", {"chosen": "b", "rejected": None}, "'rejected' is missing"),
        ("sft", {"question": "a"}, "'messages' is missing"),
        ("pretrain", {"messages": []}, "pretrain needs 'text', 'text' is missing"),
        ("kto", {"prompt": "a", "completion": "b"}, "'label' is missing"),
        ("grpo", {"text": "a"}, "grpo needs 'prompt'"),
    ],
)
def test_rows_are_held_to_the_method(farm: Cli, method: str, row: object, said: str) -> None:
    whole = {
        "messages": [],
        "prompt": "a",
        "completion": "b",
        "label": True,
        "chosen": "",
        "rejected": "",
        "text": "",
    }
    rows(farm, whole, whole, row)
    result = farm("plan", "-f", farm.write("sft.yaml", spec(method, "./rows.jsonl")))
    assert result.code == 65
    assert f"sft.yaml:6:12: rows.jsonl:3: {method}" in result.err
    assert said in result.err


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "rows.jsonl holds no rows"), ("{\n", "rows.jsonl:1: "), ("[1]\n", "rows.jsonl:1: no JSON object")],
)
def test_rows_that_are_none_are_refused(farm: Cli, text: str, said: str) -> None:
    farm.write("rows.jsonl", text)
    result = farm("plan", "-f", farm.write("sft.yaml", spec(dataset="./rows.jsonl")))
    assert (result.code, said in result.err) == (65, True), result.err


def test_another_column_can_be_the_text(farm: Cli) -> None:
    rows(farm, {"body": "a"})
    args = "{dataset_text_field: body}"
    assert farm("plan", "-f", farm.write("sft.yaml", spec("pretrain", "./rows.jsonl", args))).code == 0


def test_folders_lists_and_tables_are_looked_at(farm: Cli, tmp_path: Path) -> None:
    for name, text in (
        ("a.json", '[{"text": "x"}, {"tex": "y"}]'),
        ("b.csv", "text,x\na,b\n"),
        ("c.csv", "txt\na\n"),
    ):
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_text(text)
    found = {
        name: farm("plan", "-f", farm.write("sft.yaml", spec("pretrain", f"./{name}"))) for name in "abc"
    }
    assert [found[name].code for name in "abc"] == [65, 0, 65]
    assert "a.json:2: pretrain needs 'text'" in found["a"].err


def test_interrupted_training_is_gone_on_from_when_asked(cli: Cli) -> None:
    printed(cli, exit_code=1)
    file = cli.write("sft.yaml", spec())
    assert cli("apply", "-y", "-f", file).code == 1
    assert "sft  task  unchanged, failed before" in cli("plan", "-f", file).out
    assert "sft  task  rerun" in cli("plan", "--resume", "-f", file).out
    printed(cli, LEFT)
    assert cli("apply", "-y", "--resume", "-f", file).code == 0
    assert json.loads(cli("show", "sft", "--json").out)["run"]["artifacts"]


def test_a_merge_needs_an_adapter_that_was_trained(farm: Cli) -> None:
    farm("apply", "-y", "-f", farm.write("hello.yaml", "type: task\nname: hello\ncommands: [echo]\n"))
    result = farm("merge", "hello", "-y")
    assert (result.code, "trains no adapter" in result.err) == (64, True)
    farm("apply", "-y", "-f", farm.write("sft.yaml", spec()))
    result = farm("merge", "sft", "-y")
    assert result.code == 0, result.err
    assert "~ train.merge: False -> True" in result.err


BARE = """\
type: task
name: sft
backends: [process]
train: {model: Qwen/Qwen3-8B, dataset: org/rows, adapter: lora, output: OUTPUT}
"""


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("results", "a place without volumes writes to a folder"),
        ("./notes/out", "cannot be written: "),
        ("./taken", "holds what run dpo left"),
    ],
)
def test_an_output_that_cannot_be_ours_is_refused(cli: Cli, output: str, said: str) -> None:
    (cli.folder / "config.yaml").write_text(json.dumps({"backends": [{"type": "process"}]}))
    cli.write("notes", "a file")
    (cli.folder / "taken").mkdir()
    (cli.folder / "taken" / "modelyard-output.json").write_text('{"run": "dpo"}')
    result = cli("plan", "-f", cli.write("sft.yaml", BARE.replace("OUTPUT", output)))
    assert (result.code, said in result.err) == (65, True), result.err
    assert "sft.yaml:4:" in result.err


WRONG = """\
type: task
name: sft
train:
  method: {method}
  model: {model}
  dataset: {dataset}
  adapter: {adapter}
  sequence_length: {length}
  args: {args}
  output: {output}
  {more}
"""
RIGHT = {
    "method": "sft", "model": "Qwen/Qwen3-8B", "dataset": "org/rows", "adapter": "lora", "length": 2048,
    "args": "{}", "output": "results", "more": "epochs: 1",
}  # fmt: skip


@pytest.mark.parametrize("command", ["plan", "validate"])
@pytest.mark.parametrize(
    ("changes", "place", "said", "fix"),
    [
        ({"args": "{learning_rat: 1}"}, "9:10", "trl 1.16.0 has no learning_rat", "mean 'learning_rate'?"),
        ({"args": "{optim: adamx}"}, "9:17", "train.args.optim: optim takes one of", "mean 'ademamix'?"),
        ({"args": "{learning_rate: fast}"}, "9:25", "takes a number, got 'fast'", ""),
        ({"args": "{output_dir: /x}"}, "9:10", "output_dir is not for args", "say output: in the spec"),
        ({"method": "orpo"}, "4:11", "trl does not train by orpo", "write engine: axolotl"),
        ({"method": "spo"}, "4:11", "train.method: expected sft, dpo", "did you mean 'ppo'?"),
        ({"length": 10**6}, "8:20", "sequences of 1000000 are beyond the model's 40960", "at most 40960"),
        ({"args": "{max_length: 50000}"}, "9:22", "sequences of 50000 are beyond", "at most 40960"),
        (
            {"adapter": "{type: lora, targets: [q_proj, k_prj]}"},
            "7:43", "Qwen3ForCausalLM has no 'k_prj'", "did you mean 'k_proj'?",
        ),
        ({"adapter": "none", "more": "merge: true"}, "11:10", "there is no adapter to fold", "remove it"),
        ({"more": "report: wandb"}, "11:11", "wandb needs WANDB_API_KEY in env", "add env: [WANDB_API_KEY]"),
        ({"model": "meta-llama/Llama-3.1-8B"}, "5:10", "is gated and needs HF_TOKEN", "add env: [HF_TOKEN]"),
        ({"output": "s4://bucket/x"}, "10:11", "s4:// is no kind of bucket", "did you mean 's3://'?"),
        ({"method": "grpo"}, "9:9", "grpo needs reward_funcs", "reward_funcs: [think_format_reward]"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_told_with_its_line(
    farm: Cli, command: str, changes: dict[str, object], place: str, said: str, fix: str
) -> None:
    result = farm(command, "-f", farm.write("sft.yaml", WRONG.format(**{**RIGHT, **changes})))
    assert result.code == 65, result.err
    assert f"sft.yaml:{place}: " in result.err, result.err
    assert said in result.err
    assert fix in result.err


def test_all_that_is_wrong_with_training_is_told_at_once(farm: Cli) -> None:
    rows(farm, {"question": "a"})
    changes = {"dataset": "./rows.jsonl", "length": 10**6, "args": "{learning_rat: 1}"}
    result = farm("plan", "-f", farm.write("sft.yaml", WRONG.format(**{**RIGHT, **changes})))
    told = [line for line in result.err.splitlines() if "sft.yaml:" in line]
    found = [line.split(": ")[0].rpartition("/")[2] for line in told]
    assert found == ["sft.yaml:6:12", "sft.yaml:8:20", "sft.yaml:9:10"]


def test_what_is_right_is_told_nothing(farm: Cli) -> None:
    for command in ("plan", "validate"):
        result = farm(command, "-f", farm.write("sft.yaml", WRONG.format(**RIGHT)))
        assert result.code == 0, result.err


def test_results_in_a_bucket_are_used_from_there(cli: Cli) -> None:
    printed(cli, {**LEFT, "artifacts": [*LEFT["artifacts"], MERGED]})
    assert cli("apply", "-y", "-f", cli.write("sft.yaml", spec(output="s3://runs/sft/"))).code == 0
    shown = json.loads(cli("show", "sft", "--json").out)["run"]["artifacts"]
    assert shown[0]["location"] == "s3://runs/sft/"
    next_one = spec(method="dpo").replace("model: Qwen/Qwen3-8B", "model: run://sft").replace("sft", "two", 1)
    result = cli("plan", "--json", "-f", cli.write("two.yaml", next_one))
    assert result.code == 0, result.err
    words = json.loads(result.out)["runs"][0]["engine"]["command"]
    assert words[words.index("--model_name_or_path") + 1] == "/modelyard/model"


@pytest.mark.parametrize(
    ("card", "code", "said"),
    [
        (
            [{"name": "prompt"}, {"name": "chosen"}],
            65,
            "acme/tiny: dpo needs 'chosen' and 'rejected', 'rejected' is",
        ),
        ([{"name": "chosen"}, {"name": "rejected"}], 0, "8 rows"),
        (None, 0, "columns of acme/tiny are not checked: its card does not name them"),
    ],
)
def test_columns_of_a_hub_are_checked_before_anything_starts(
    farm: Cli, monkeypatch: pytest.MonkeyPatch, card: list[dict[str, str]] | None, code: int, said: str
) -> None:
    info = {"features": card, "splits": [{"name": "train", "num_examples": 8}]} if card else None
    with serving(FakeHub(card={"dataset_info": info})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        result = farm("plan", "-f", farm.write("sft.yaml", spec("dpo", "acme/tiny")))
    assert result.code == code, result.err
    assert said in result.out + result.err, result.out


def test_columns_that_nobody_could_check_are_said(farm: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    result = farm("plan", "-f", farm.write("sft.yaml", spec()))
    assert (result.code, "columns of org/rows are not checked: the hub at" in result.out) == (0, True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = farm("plan", "-f", farm.write("sft.yaml", spec()))
    assert "columns of org/rows are not checked: HF_HUB_OFFLINE is set" in result.out


def test_data_that_are_not_here_are_told_before_a_machine_is_paid_for(farm: Cli) -> None:
    result = farm("plan", "-f", farm.write("sft.yaml", spec(dataset="./rwos.jsonl")))
    said = f"there is no {farm.folder}/rwos.jsonl on this machine: it has to be where the run trains"
    assert (result.code, said in result.out) == (0, True), result.out


def test_gated_data_need_a_token(farm: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FakeHub(gated=True)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        result = farm("plan", "-f", farm.write("sft.yaml", spec("dpo", "acme/tiny")))
    assert (result.code, "acme/tiny is gated and needs HF_TOKEN in env" in result.err) == (65, True)


def test_a_merged_model_in_a_bucket_is_served_from_there(cli: Cli) -> None:
    printed(cli, {**LEFT, "artifacts": [*LEFT["artifacts"], MERGED]})
    cli("apply", "-y", "-f", cli.write("sft.yaml", spec(output="s3://runs/sft")))
    file = cli.write("chat.yaml", SERVE.format(engine="vllm", model="run://sft"))
    result = cli("plan", "--json", "-f", file)
    assert result.code == 0, result.err
    assert "s3://runs/sft/merged" in json.loads(result.out)["runs"][0]["engine"]["command"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("run://sft", "run 'sft' left an adapter in a bucket, and a whole model is needed here"),
        ("{id: Qwen/Qwen3-8B, adapters: [{name: a, id: run://sft}]}", "left its adapter in a bucket"),
    ],
)
def test_an_adapter_in_a_bucket_is_merged_first(farm: Cli, model: str, said: str) -> None:
    farm("apply", "-y", "-f", farm.write("sft.yaml", spec(output="s3://runs/sft")))
    result = farm("plan", "-f", farm.write("chat.yaml", SERVE.format(engine="vllm", model=model)))
    assert (result.code, said in result.err) == (65, True), result.err
    assert "modelyard merge sft" in result.err
