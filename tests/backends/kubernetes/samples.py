"""Groups of every kind, as the planner hands them over."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.backend import File, Group, Launch, Mount, Port, Probe, Resources, Scaling

H100 = Resources(
    cpu=8,
    memory_bytes=64 * 2**30,
    accelerator="H100-80GB",
    vendor="nvidia",
    accelerators=2,
    vram_bytes=85_029_027_840,
    compute_capability=(9, 0),
)

SERVE = Launch(
    name="llama-70b-0-0-0",
    run="llama-70b",
    spec_hash="0f1e2d3c4b5a6978",
    image="vllm/vllm-openai:v0.33.0",
    command=("--model", "meta-llama/Llama-3.1-70B-Instruct", "--tensor-parallel-size=2"),
    env=(("VLLM_LOGGING_LEVEL", "INFO"),),
    secrets=(("HF_TOKEN", "${{ secrets.HF_TOKEN }}"),),
    resources=H100,
    ports=(Port(8000),),
    mounts=(Mount("huggingface", "/root/.cache/huggingface", "cache"),),
    probe=Probe("http", 8000, "/health", start_s=1234),
    restart=True,
    stop_grace_s=60,
)

TASK = Launch(
    name="answer-0-0-0",
    run="answer",
    spec_hash="aabbccdd00112233",
    image="python:3.12-slim",
    command=("/bin/sh", "-ec", "echo $HOME $(date) $$"),
    resources=Resources(cpu=1, memory_bytes=512_000_000),
    files=(File("contract.txt", b"hello\n"), File("/etc/app/raw.bin", b"\xff\x00", mode=0o755)),
    registry_secret=("registry", "user:${{ secrets.PASSWORD }}"),
)

TRAIN = replace(TASK, name="sft-0-0-0", run="sft", resources=replace(H100, accelerators=8), files=())

SERVICE = Group("llama-70b", SERVE, "service", replicas=2, surge=False)
SPANNING = Group("llama-405b", replace(SERVE, run="llama-405b"), "service", replicas=2, nodes=2)
POOLED = replace(SERVICE, serves=("meta-llama/Llama-3.1-70B-Instruct",))
SCALED = replace(SERVICE, scaling=Scaling(1, 4, "vllm:num_requests_waiting", 4.0))
JOB = Group("answer", TASK, "task", retries=2, max_duration_s=3600)
INDEXED = Group("sft", TRAIN, "task", nodes=4, retries=1)
WORKPLACE = Group(
    "python",
    Launch(
        "python-0-0-0",
        "python",
        spec_hash="99887766",
        image="python:3.12-slim",
        command=("/bin/sh", "-ec", "sleep infinity"),
        mounts=(Mount("pip-cache", "/pip-cache"),),
        restart=True,
    ),
    "dev-environment",
)

GROUPS = {
    "service": SERVICE,
    "spanning": SPANNING,
    "scaled": SCALED,
    "pooled": POOLED,
    "job": JOB,
    "indexed": INDEXED,
    "workplace": WORKPLACE,
}
