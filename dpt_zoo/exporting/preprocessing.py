"""The preparation of an image as operators of an ONNX graph: resizing, padding, and boxes in pixels of the image."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape


def add_preprocessing(model: ir.Model, scale: tuple[int, int], divisor: int) -> None:
    """Replace the inputs `images` and `image_sizes` of a model by `image`, `(H, W, 3)` uint8 of any size.

    Args:
        model: a model for one image. Its output `boxes` becomes boxes in pixels of `image`.
        scale: maximum longer and shorter side of the resized image, in pixels.
        divisor: the sides of the padded image are multiples of this number.
    """
    graph = model.graph
    images, image_sizes = graph.inputs[:2]
    image = ir.val("image", ir.DataType.UINT8, ["height", "width", 3])
    tape = Tape()
    prepared, size, factors = prepare(tape, image, scale, divisor)
    images.replace_all_uses_with(prepared)
    image_sizes.replace_all_uses_with(size)
    graph.insert_before(graph[0], tape.nodes)
    boxes = graph.outputs[1]
    divide = ir.node("Div", [boxes, factors], name="boxes_in_image")
    graph.append(divide)
    boxes.name, divide.outputs[0].name = "resized_boxes", boxes.name
    divide.outputs[0].type, divide.outputs[0].shape = boxes.type, boxes.shape
    graph.outputs[1] = divide.outputs[0]
    graph.inputs[:2] = [image]
    for value in tape.initializers:
        graph.register_initializer(value)


def prepare(tape: Tape, image: ir.Value, scale: tuple[int, int], divisor: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Add to a `tape` the operators that resize and pad `image` `(H, W, 3)` uint8 as the configs' test pipeline does.

    `scale` and `divisor` are those of `add_preprocessing`.

    Pixels differ from OpenCV's by at most one grey level, because OpenCV interpolates with 11 bits. If the exact length
    of a side is half a pixel, OpenCV's caller may round it down, and this graph always rounds it up.

    Returns:
        The image `(1, 3, H', W')` float32, its size without padding `(1, 2)` float32, and the scale factors x, y, x, y
        `(4,)` float32.
    """

    def constant(*values: int) -> ir.Value:
        name = f"preprocessing.{len(tape.initializers)}"
        return tape.initializer(ir.tensor(np.array(values, np.int64), name=name))

    def op(kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return tape.op(kind, inputs, attributes)

    long, short = scale
    size = op("Shape", image, end=2)  # (2,): height, width
    longer, shorter = op("ReduceMax", size, constant(0)), op("ReduceMin", size, constant(0))
    # The factor is the fraction long/longer or short/shorter, the smaller one. Integers are exact in every runtime.
    is_long = op("Less", op("Mul", shorter, constant(long)), op("Mul", longer, constant(short)))
    numerator = op("Where", is_long, constant(long), constant(short))
    denominator = op("Where", is_long, longer, shorter)
    doubled = op("Mul", op("Mul", size, numerator), constant(2))
    resized = op("Div", op("Add", doubled, denominator), op("Mul", denominator, constant(2)))  # rounded
    # Resize takes all four sides of a batch of images.
    pixels = op("Unsqueeze", op("Transpose", op("Cast", image, to=ir.DataType.FLOAT), perm=[2, 0, 1]), constant(0))
    sides = op("Concat", constant(1, 3), resized, axis=0)
    interpolated = tape.op(
        "Resize",
        [pixels, None, None, sides],
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    )
    missing = op("Mod", op("Neg", resized), constant(divisor))
    pads = op("Concat", constant(0, 0, 0, 0, 0, 0), missing, axis=0)
    padded = op("Pad", op("Round", interpolated), pads)
    resized, size = (op("Cast", each, to=ir.DataType.FLOAT) for each in (resized, size))
    factors = op("Gather", op("Div", resized, size), constant(1, 0, 1, 0), axis=0)
    return padded, op("Unsqueeze", resized, constant(0)), factors
