"""How many tensors a training adds in one operation, read from the graphs that TensorFlow runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tensorflow.python.eager import context

_OF_SCALARS = {"L2Loss", "Sum"}


class Sums:
    """Hears a run's events, and looks at what ran until its second step. most: tensors, not scalars, that one operation
    adds there. TensorFlow may rewrite a sum of three or more to add in whichever order they come."""

    def __init__(self) -> None:
        self.most = 0
        self.looked = 0
        self._steps = 0

    def hear(self, event: Mapping[str, Any]) -> None:
        self._steps += event["kind"] == "step"
        if event["kind"] == "start":
            context.enable_run_metadata()  # graphs are kept when they are made ready
        elif self._steps == 2 and not self.looked:
            for nodes in _graphs(context.export_run_metadata()):
                self._look(nodes)
            context.disable_run_metadata()

    def _look(self, nodes: list[Any]) -> None:
        kinds = {node.name: node.op for node in nodes}
        self.looked += len(nodes)
        for node in nodes:
            sources = [name.split(":")[0] for name in node.input if not name.startswith("^")]
            if node.op == "AddN" and not {kinds.get(name, "") for name in sources} <= _OF_SCALARS:
                self.most = max(self.most, len(sources))
            assert node.op != "TemporaryVariable", f"{node.name}: a sum in no fixed order"


def _graphs(metadata: Any) -> Iterator[list[Any]]:
    for ran in metadata.function_graphs:
        for graph in ran.partition_graphs:
            yield list(graph.node)
            for function in graph.library.function:
                yield list(function.node_def)
