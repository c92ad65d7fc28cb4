"""`bnprune benchmark`: what is measured, and how figures come about. Times themselves are for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bnprune.pruning.latency import in_turn
from bnprune.timing.measure import Spread, ratios
from bnprune.timing.memory import peak_memory
from tests.cli.harness import CHAIN, document, done, refusal, squeezed, write

QUICK = ("--rounds", "3", "--batch", "4", "--device", "cpu")


@pytest.fixture
def slim() -> str:
    done("prune", *CHAIN, "--out", "slim.safetensors")
    return "slim.safetensors"


def test_two_networks_side_by_side(slim: str) -> None:
    model = CHAIN[:2]
    found = document("benchmark", slim, *model, "--dense", *QUICK, "--backend", "onnxruntime,eager", "--threads", "1")
    assert found["schema"] == "bnprune.benchmark/1"
    assert found["input"] == [3, 8, 8]
    machine = found["machine"]
    assert machine["threads"] == 1
    assert machine["processor"]
    assert machine["versions"]["torch"] == torch.__version__.split("+")[0]
    dense, cut = found["networks"]
    assert dense["name"] == "dense tests.nets:chain"
    assert cut["file_bytes"] == Path(slim).stat().st_size
    inspected = document("inspect", *CHAIN)
    assert (dense["params"], dense["macs"]) == (inspected["params"], inspected["macs"])
    assert cut["macs"] < dense["macs"]
    assert [(t["backend"], t["batch"]) for t in found["timings"]] == [
        ("eager", 1), ("eager", 4), ("onnxruntime", 1), ("onnxruntime", 4)
    ]  # fmt: skip
    for timing in found["timings"]:
        assert timing["rounds"] == 3
        for figures in timing["networks"]:
            assert 0 < figures["p10_ms"] <= figures["median_ms"] <= figures["p90_ms"]
            assert figures["throughput"] == pytest.approx(1e3 * timing["batch"] / figures["median_ms"], rel=1e-2)
        assert 0 < timing["ratio"]["p10"] <= timing["ratio"]["median"] <= timing["ratio"]["p90"]


def test_one_network_in_another_format(trained: Path) -> None:
    found = document("benchmark", trained, *QUICK, "--dtype", "bfloat16", "--batch", "1")
    assert len(found["networks"]) == len(found["timings"]) == 1
    assert found["timings"][0]["ratio"] is None
    assert found["machine"]["dtype"] == "bfloat16"


def test_a_network_that_is_not_in_float32() -> None:
    write("half.py", "import torch\nfrom tests.nets import signal\n\n\ndef build(): return signal().bfloat16()\n")
    options = ("--model", "half:build", "--input", "3,16", *QUICK)
    [network] = document("benchmark", *options)["networks"]
    assert network["macs"] == 3 * 8 * 3 * 16 + 8 * 12 * 3 * 14 + 12 * 5


def test_a_shape_that_does_not_fit_is_refused() -> None:
    message = refusal(2, "benchmark", *CHAIN[:2], "--input", "1,8,8", *QUICK)
    assert "the forward pass of the network fails in forward(): RuntimeError: " in message
    assert "Check the shape of the input and its type (got (1, 1, 8, 8) float32)." in message


def test_a_network_that_fails_only_on_the_backend_is_no_bug() -> None:
    write(
        "mixed.py",
        "from tests.nets import chain\n\n\ndef build():\n    network = chain()\n    network[1].half()\n"
        "    return network\n",
    )
    options = ("--model", "mixed:build", "--input", "3,8,8", *QUICK, "--backend", "onnxruntime")
    assert "the forward pass of the network fails in forward(): RuntimeError: " in refusal(2, "benchmark", *options)


def test_two_files_and_channels_last(slim: str) -> None:
    threads = torch.get_num_threads()
    options = ("benchmark", slim, slim, *CHAIN[:2], *QUICK, "--channels-last", "--threads", str(threads + 1))
    text = squeezed(done(*options).stdout)
    assert f"{threads + 1} threads" in text
    assert "float32, channels_last" in text
    assert "A: slim.safetensors B: slim.safetensors" in text
    assert "100.0%" in text
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("--backend", "egaer"), "--backend: 'egaer' is unknown. Did you mean 'eager'?"),
        (("--backend", "onnxruntime", "--dtype", "bfloat16"), "onnxruntime is measured on the CPU in float32"),
        (("--dense",), "--dense: tests.nets:chain is not a pruned network"),
        (("--batch", "0"), "Invalid value for '--batch'"),
        (("--device", "gpu"), "device: 'gpu' cannot be used"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: tuple[str, ...], printed: str) -> None:
    assert printed in refusal(2, "benchmark", *CHAIN, *QUICK, *arguments)


def test_networks_for_other_inputs_are_not_compared(slim: str, trained: Path) -> None:
    message = refusal(2, "benchmark", trained, slim, *QUICK, *CHAIN[:2])
    assert "inputs of different shapes, 1,16,16 and 3,8,8" in message


def test_peak_memory_is_weights_and_what_lives_at_once() -> None:
    net = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))
    weights = 4 * 100 + 100 + 100 * 2 + 2
    # The input stays, and both sides of the ReLU are there at once.
    assert peak_memory(net, torch.zeros(8, 4)) == 4 * (weights + 8 * (4 + 100 + 100))
    assert peak_memory(net.bfloat16(), torch.zeros(8, 4).bfloat16()) == 2 * (weights + 8 * (4 + 100 + 100))


def test_networks_run_in_turn() -> None:
    order: list[str] = []
    taken = in_turn([lambda: order.append("A"), lambda: order.append("B")], rounds=3, warmup=1)
    assert "".join(order) == "ABABABAB"
    assert [len(times) for times in taken] == [3, 3]


def test_a_spread_has_percentiles() -> None:
    assert Spread.of([float(value) for value in range(11)]) == Spread(5.0, 1.0, 9.0)


def test_ratios_are_of_passes_that_ran_in_turn_and_those_of_short_passes_of_blocks() -> None:
    assert ratios([1.0, 2.0, 4.0], [0.5, 1.0, 2.0]) == [0.5, 0.5, 0.5]
    first, second = [0.02] * 40, [0.01, 0.03] * 20
    assert ratios(first, second) == pytest.approx([1.0] * 10)  # blocks of four
