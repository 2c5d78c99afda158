"""An integer graph and a kind of chip in; the split on the fewest chips whose SRAM holds it out, found by placing it.

What a schedule adds (values inside a token, instructions) is not known before there is one and not counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from openlpu._base.errors import DoesNotFit, Unsupported
from openlpu.arch.chip import Chip
from openlpu.arch.topology import NODE
from openlpu.graph.ir import Graph
from openlpu.partition.shard import TENSOR, shard
from openlpu.partition.split import Split
from openlpu.place.layout import place_stage


def fewest(graph: Graph, chip: Chip, context: int = 0, requests: int = 1) -> Split | None:
    """The split whose stages all have room for ``context`` positions (0: the model's own) of each of ``requests``; None
    if no split does."""
    for split in ascending(graph, chip):
        try:
            kinds = {stage.signature(): stage for stage in shard(graph, split).stages}
            if any(codes(stage.graph) > split.tensor * sram(chip) for stage in kinds.values()):
                continue
            for stage in kinds.values():
                place_stage(stage, chip, context, requests=requests)
        except (DoesNotFit, Unsupported):
            continue
        return split
    return None


def ascending(graph: Graph, chip: Chip) -> Iterator[Split]:
    """Splits of whole layers over stages of up to a node, from the first whose SRAM could hold the weights on; then
    those over stages of two nodes, of halves of layers where there are more stages than layers."""
    layers, least = graph.config.layers, -(-codes(graph) // sram(chip))
    every = [Split(tensor, stages) for tensor in TENSOR for stages in range(1, layers + 1)]
    every += [Split(max(TENSOR), stages, halves=True) for stages in range(layers + 1, 2 * layers + 2)]
    yield from sorted((s for s in every if s.chips >= least), key=lambda s: (s.tensor > NODE, s.chips, s.tensor))


def codes(graph: Graph) -> int:
    """Bytes of a graph's weights, each once."""
    keys = {key for node in graph.nodes for word, key in node.params.items() if word.partition(".")[0] == "codes"}
    return sum(graph.params[key].size for key in keys)


def sram(chip: Chip) -> int:
    """Bytes of a chip."""
    return chip.slices * chip.words_per_slice * chip.lanes


def reported(error: DoesNotFit, graph: Graph, chip: Chip, context: int = 0, requests: int = 1) -> DoesNotFit:
    """The report of what does not fit, with how many chips would do."""
    split = fewest(graph, chip, context, requests)
    if split is None:
        none = f"no number of chips {chip.name} would do: a layer is more than {max(TENSOR)} of them hold"
        fix = f"{error.fix} ({none})"
    else:
        how = f"--system NAME --tensor {split.tensor} --stages {split.stages}"
        cut = "half" if split.halves else "whole"
        fix = f"{split.chips:,} chips, which have room for it ({how}, {cut} layers; found by placing); or {error.fix}"
    return DoesNotFit(error.what, where=error.where, fix=fix)
