"""What torch's compilers may assume of the op: slow checks of torch's own."""

from typing import Any

import pytest
import torch

from lorebase.kernels.lora.op import LoraLinear, lora_linear
from tests.unit.kernel_samples import Case

RANKS = [(8, 0, 3), (64, 16, 1), (0, 0, 0), (1, 40, 33)]
SLOTS = [(5 * t + t // 6) % 5 - 1 for t in range(37)]


@pytest.fixture
def case() -> Case:
    made = Case(RANKS, max_rank=64)
    made.plan.fill(SLOTS)
    return made


def _tables(case: Case) -> tuple[Any, ...]:
    layer, plan = case.layer, case.plan
    return (
        case.pool.buffer,
        *(layer.a_offsets, layer.b_offsets, layer.ranks, layer.slice_starts),
        *(plan.host_counts, plan.tiles, plan.wide_tiles, plan.order),
        *(layer.slice_sizes, plan.tile_tokens, plan.wide_tile_tokens, 64),
    )


def test_torch_finds_the_registration_right(case: Case) -> None:
    y, x = case.inputs(SLOTS)
    passed = torch.library.opcheck(lora_linear.default, (y, x.nan_to_num(), *_tables(case)))
    assert len(passed) >= 4
    assert set(passed.values()) == {"SUCCESS"}


def test_a_compiled_layer_keeps_the_op_and_sees_the_change_of_y(case: Case) -> None:
    y, x = case.inputs(SLOTS)
    tables, graphs = _tables(case), list[torch.fx.GraphModule]()

    def layer(y_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        lora_linear(y_TN, x_TK, *tables)
        return y_TN * 2

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    expected = y.clone()
    lora_linear(expected, x, *tables)
    assert not expected.equal(y)
    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    changed = y.clone()
    assert compiled(changed, x).equal(expected * 2)
    assert changed.equal(expected)
    [graph] = graphs
    assert sum("lora_linear" in str(node.target) for node in graph.graph.nodes) == 1
    aot = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert aot(y.clone(), x).equal(expected * 2)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_of_a_layer_serves_steps_of_any_number_of_tokens(
    case: Case, backend: str
) -> None:
    apply, graphs = LoraLinear(case.pool, case.layer, case.plan), list[torch.fx.GraphModule]()
    lookup = torch._dynamo.lookup_backend(backend)

    def layer(y_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        apply(y_TN, x_TK)
        return y_TN * 2

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return lookup(graph, inputs)

    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    for slots in (SLOTS, SLOTS[:5], SLOTS + SLOTS[:20], [-1] * 9, [0, 1]):
        y, x = case.inputs(slots)
        case.plan.fill(slots)
        expected = y.clone()
        apply(expected, x)
        for tensor in (y, x):  # as vLLM does; raises where tracing fixes the number
            torch._dynamo.mark_dynamic(tensor, 0)
        assert compiled(y, x).equal(expected * 2)
    assert len(graphs) == 1
