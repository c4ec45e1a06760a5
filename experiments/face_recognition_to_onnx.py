"""Make `difflens/judges/photographs/face_recognition.onnx` from the npm package `@vladmandic/face-api` (MIT).

    npm pack @vladmandic/face-api@1.7.15 && tar xzf vladmandic-face-api-1.7.15.tgz
    uv run experiments/face_recognition_to_onnx.py package/model difflens/judges/photographs/face_recognition.onnx

The network is dlib's face recognition (Davis King 2017, CC0), a residual network whose 128 numbers lie within 0.6 of each
other for two pictures of one person; face-api stores most of its weights in 8 bits, and so does the file made here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

BLOCKS = ["32_1", "32_2", "32_3", "64_down", "64_1", "64_2", "64_3", "128_down", "128_1", "128_2", "256_down"]
BLOCKS += ["256_1", "256_2", "256_down_out"]
SIDES = {"64_down": (35, 64), "128_down": (17, 128), "256_down": (8, 256), "256_down_out": (4, 256)}
"""Blocks that halve the map: its side before, and the channels after."""


class Graph:
    """An ONNX graph that grows node by node; `weights` are face-api's, as name → values, and the scale and
    the least number that those of 8 bits stand for."""

    def __init__(self, weights: dict[str, tuple[NDArray[Any], float, float]]) -> None:
        self.weights = weights
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: NDArray[np.generic]) -> str:
        """Add a constant; its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def plain(self, name: str) -> NDArray[np.float32]:
        """Weights as numbers."""
        values, scale, least = self.weights[name]
        return (values * scale + least).astype(np.float32)

    def filters(self, name: str) -> str:
        """A convolution's weights times the scales of its channels: 8 bits stay 8 bits."""
        values, scale, least = self.weights[f"{name}/conv/filters"]
        filters, channels = np.ascontiguousarray(values.transpose(3, 2, 0, 1)), self.plain(f"{name}/scale/weights")
        if values.dtype != np.uint8:  # some are stored in full
            return self.constant(filters * channels[:, None, None, None])
        zero = round(-least / scale)
        assert abs(zero + least / scale) < 1e-3, name  # 8 bits hold the number 0
        scales, zeros = (scale * channels).astype(np.float32), np.full(len(channels), zero, np.uint8)
        return self.node("DequantizeLinear", *map(self.constant, (filters, scales, zeros)), axis=0)

    def conv(self, value: str, name: str, *, stride: int = 1) -> str:
        """A convolution and the channels' scales and shifts behind it, which are put into its weights."""
        channels, filters = self.plain(f"{name}/scale/weights"), self.filters(name)
        bias = channels * self.plain(f"{name}/conv/bias") + self.plain(f"{name}/scale/biases")
        edge = 0 if stride == 2 else 1
        return self.node(
            "Conv", value, filters, self.constant(bias), strides=[stride, stride], pads=[edge, edge, edge, edge]
        )

    def pad(self, value: str, *, channels: int = 0, side: int = 0) -> str:
        """Zeros behind the channels, and below and to the right of the map."""
        if not channels and not side:
            return value
        return self.node("Pad", value, self.constant(np.array([0, 0, 0, 0, 0, channels, side, side], np.int64)))

    def block(self, value: str, name: str) -> str:
        """A residual block."""
        side, channels = SIDES.get(name, (0, 0))
        inner = self.node("Relu", self.conv(value, f"conv{name}/conv1", stride=2 if side else 1))
        inner = self.conv(inner, f"conv{name}/conv2")
        if side:
            before = self.weights[f"conv{name}/conv1/conv/filters"][0].shape[2]
            value = self.node("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2])
            value = self.pad(value, channels=channels - before)
            inner = self.pad(inner, side=side // 2 - (side - 1) // 2)
        return self.node("Relu", self.node("Add", inner, value))


def read_weights(folder: Path) -> dict[str, tuple[NDArray[Any], float, float]]:
    """face-api's weights, as `Graph` takes them."""
    (manifest,) = json.loads((folder / "face_recognition_model-weights_manifest.json").read_text())
    raw, weights, at = (folder / manifest["paths"][0]).read_bytes(), {}, 0
    for entry in manifest["weights"]:
        eight = entry.get("quantization", {"dtype": "float32", "scale": 1.0, "min": 0.0})
        kind, size = np.dtype(eight["dtype"]), int(np.prod(entry["shape"]))
        values = np.frombuffer(raw, kind, size, at).reshape(entry["shape"])
        weights[entry["name"]] = (values, eight["scale"], eight["min"])
        at += size * kind.itemsize
    assert at == len(raw)
    return weights


def main() -> None:
    """Write the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of face-api's models")
    parser.add_argument("file", help="that is written")
    options = parser.parse_args()
    graph = Graph(read_weights(options.folder))
    value = graph.node("Relu", graph.conv("images", "conv32_down", stride=2))
    value = graph.node("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2])
    for name in BLOCKS:
        value = graph.block(value, name)
    value = graph.node("Flatten", graph.node("GlobalAveragePool", value))
    graph.nodes.append(helper.make_node("MatMul", [value, graph.constant(graph.plain("fc"))], ["descriptor"]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 150, 150])
    descriptor = helper.make_tensor_value_info("descriptor", TensorProto.FLOAT, ["n", 128])
    made = helper.make_graph(graph.nodes, "face_recognition", [images], [descriptor], graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, options.file)


if __name__ == "__main__":
    main()
