"""Writes tests/vectors/soundstream_tiny: three TFLite files built like those of Lyra v2, but tiny and
with seeded random weights, and what the TFLite runtime makes of an input with them. With the folder of
the published files as second argument, also what it makes of an input with those.

    python tests/reference/soundstream_vectors.py [tests/vectors [LYRA]]

The graphs have every kind of op group that the published ones have: causal convolutions with their past in a
variable (float and 8-bit), groups, depthwise and dilated filters, residuals in floats, in integers and
between them, transposed convolutions of one or two steps per frame, split into groups.

Entries of a `.safetensors` file:
- `vector.input`: [1, n_samples] i16;
- for the first N samples of it, zeros completing the last frame: `vector.N.codes` [n_codebooks, n_frames] u8,
  `vector.N.margins` f32 (half of how far the best two distances lie apart, over the norm of the latent) and
  `vector.N.audio.K` [1, n_frames * hop] f32, decoded from the first K codebooks.
"""

import sys
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as S
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import save_file

HOP, DIM, N_STAGES, SIZE = 16, 8, 6, 16
SLOPE = 0.3
NAMES = "soundstream_encoder.tflite", "quantizer.tflite", "lyragan.tflite"
OPS, TYPES = S.BuiltinOperator, S.TensorType
DTYPES = {TYPES.FLOAT32: np.float32, TYPES.INT32: np.int32, TYPES.INT8: np.int8}


class Graph:
    """Tensors and ops of one subgraph."""

    def __init__(self, model, name):
        self.model, self.graph = model, S.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = name, [], []
        model.subgraphs.append(self.graph)

    def tensor(self, name, dtype, shape, data=None, quantization=None):
        t = S.TensorT()
        t.name, t.type, t.shape = name, dtype, np.array(shape, np.int32)
        buffer = S.BufferT()
        if data is not None:
            data = np.ascontiguousarray(data, DTYPES[dtype])
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        t.buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
        if quantization is not None:
            t.quantization = S.QuantizationParametersT()
            scales, zero_points, t.quantization.quantizedDimension = quantization
            t.quantization.scale = np.array(scales, np.float32)
            t.quantization.zeroPoint = np.array(zero_points, np.int64)
        self.graph.tensors.append(t)
        return len(self.graph.tensors) - 1

    def const(self, name, data, dtype=TYPES.FLOAT32, quantization=None):
        return self.tensor(name, dtype, np.shape(data), data, quantization)

    def ints(self, *values):
        return self.const("ints", np.array(values, np.int32), TYPES.INT32)

    def op(self, code, inputs, outputs, options=None, **fields):
        o = S.OperatorT()
        codes = [c.builtinCode for c in self.model.operatorCodes]
        if code not in codes:
            c = S.OperatorCodeT()
            c.builtinCode, c.deprecatedBuiltinCode = code, min(code, 127)
            c.version = {OPS.CONV_2D: 6, OPS.DEPTHWISE_CONV_2D: 3, OPS.TRANSPOSE_CONV: 3, OPS.ADD: 2}.get(code, 1)
            c.version = 2 if code in (OPS.LEAKY_RELU, OPS.DEQUANTIZE, OPS.SPLIT) else c.version
            self.model.operatorCodes.append(c)
            codes.append(code)
        o.opcodeIndex = codes.index(code)
        o.inputs, o.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            o.builtinOptions = getattr(S, options + "T")()
            o.builtinOptionsType = getattr(S.BuiltinOptions, options)
            for field, value in fields.items():
                setattr(o.builtinOptions, field, value)
        self.graph.operators.append(o)
        return outputs[0] if outputs else None

    def shape(self, t):
        return [int(n) for n in self.graph.tensors[t].shape]


def new_model():
    model = S.ModelT()
    model.version, model.description = 3, "tiny"
    model.operatorCodes, model.subgraphs, model.signatureDefs = [], [], []
    model.buffers = [S.BufferT()]
    return model


def add_signature(model, key, graph_idx, inputs, outputs):
    graph, signature = model.subgraphs[graph_idx], S.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = key, graph_idx
    maps = []
    for pairs in (inputs, outputs):
        maps.append([])
        for name, tensor in pairs:
            m = S.TensorMapT()
            m.name, m.tensorIndex = name, tensor
            maps[-1].append(m)
    signature.inputs, signature.outputs = maps
    graph.inputs = np.array([t for _, t in inputs], np.int32)
    graph.outputs = np.array([t for _, t in outputs], np.int32)
    model.signatureDefs.append(signature)


def pack(model):
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class Net:
    """Builds a streaming network twice from one seed: in floats, to see the ranges of its activations, and
    with the integers that these ranges ask for."""

    def __init__(self, seed, ranges=None):
        self.rng, self.ranges, self.named = np.random.default_rng(seed), ranges, {}
        self.model = new_model()
        self.g, self.start = Graph(self.model, "main"), Graph(self.model, "start")
        self.g.op(OPS.CALL_ONCE, [], [], "CallOnceOptions", initSubgraphIndex=1)
        self.n_variables = self.n_outputs = 0
        self.gain = 1.0

    # Activations.

    def act(self, shape):
        """Floats."""
        return self.g.tensor("act", TYPES.FLOAT32, shape)

    def output(self, x, shape, integers=None):
        """The output of a layer: integers when its input `x` is. Both passes ask in the same order."""
        name = f"act{self.n_outputs}"
        self.n_outputs += 1
        if self.ranges is None:
            self.named[name] = self.g.tensor(name, TYPES.FLOAT32, shape)
            return self.named[name]
        if not (self.is_int8(x) if integers is None else integers):
            return self.act(shape)
        low, high = self.ranges[name]
        scale = np.float32((high - low) / 255)
        zero_point = int(np.clip(np.round(-128 - low / scale), -128, 127))
        return self.g.tensor(name, TYPES.INT8, shape, None, ([scale], [zero_point], 0))

    def is_int8(self, t):
        return self.g.graph.tensors[t].type == TYPES.INT8

    def scale(self, t):
        return self.g.graph.tensors[t].quantization.scale[0]

    def quantize(self, x):
        out = self.output(x, self.g.shape(x), integers=True)
        # In floats, adding nothing keeps the order of outputs.
        zero = [] if self.ranges else [self.g.const("zero", np.zeros(1, np.float32))]
        return self.g.op(OPS.QUANTIZE if self.ranges else OPS.ADD, [x, *zero], [out], *([] if self.ranges else ["AddOptions"]))

    def dequantize(self, x):
        return self.g.op(OPS.DEQUANTIZE, [x], [self.act(self.g.shape(x))]) if self.is_int8(x) else x

    def like(self, x, shape):
        """An activation with the quantization of `x`."""
        t = self.g.graph.tensors[x]
        q = t.quantization
        quantization = (q.scale, q.zeroPoint, 0) if self.is_int8(x) else None
        return self.g.tensor("like", t.type, shape, None, quantization)

    # Variables.

    def variable(self, shape):
        name = f"state{self.n_variables}"
        self.n_variables += 1
        handles = []
        for graph in (self.g, self.start):
            handles.append(graph.tensor(name, TYPES.RESOURCE, []))
            graph.op(OPS.VAR_HANDLE, [], [handles[-1]], "VarHandleOptions", container="", sharedName=name)
        zeros = self.start.const("zeros", np.zeros(shape, np.float32))
        self.start.op(OPS.ASSIGN_VARIABLE, [handles[1], zeros], [], "AssignVariableOptions")
        value = self.act(shape)
        self.g.op(OPS.READ_VARIABLE, [handles[0]], [value], "ReadVariableOptions")
        return handles[0], value

    def assign(self, handle, value):
        self.g.op(OPS.ASSIGN_VARIABLE, [handle, value], [], "AssignVariableOptions")

    def concat(self, axis, *xs):
        shape = self.g.shape(xs[0])
        shape[axis] = sum(self.g.shape(x)[axis] for x in xs)
        return self.g.op(OPS.CONCATENATION, list(xs), [self.act(shape)], "ConcatenationOptions", axis=axis)

    def slice(self, x, start, end=None):
        shape = self.g.shape(x)
        shape[1] = (shape[1] if end is None else end) - start
        bounds = self.g.ints(0, start, 0, 0), self.g.ints(0, end or 0, 0, 0), self.g.ints(1, 1, 1, 1)
        masks = {"beginMask": 13, "endMask": 15 if end is None else 13}
        return self.g.op(OPS.STRIDED_SLICE, [x, *bounds], [self.like(x, shape)], "StridedSliceOptions", **masks)

    # Layers.

    def parameters(self, shape, n_inputs, x, per_channel=True):
        """Weights and a bias, as integers when `x` is."""
        spread = self.rng.uniform(0.5, 1.5, (shape[0], 1, 1, shape[3]))
        weight = self.rng.normal(size=shape) * np.sqrt(1.6 / n_inputs) * self.gain * spread
        axis = 3 if shape[0] == 1 and shape[3] > 1 and n_inputs == shape[1] else 0
        bias = self.rng.normal(size=shape[axis]) * 0.1
        if not self.is_int8(x):
            return self.g.const("weight", weight), self.g.const("bias", bias), bias
        over = tuple(i for i in range(4) if i != axis) if per_channel else None
        scales = (np.abs(weight).max(over, keepdims=True) / 127).astype(np.float32)
        integers = np.clip(np.round(weight / scales), -127, 127)
        scales = scales.reshape(-1)
        w = self.g.const("weight", integers, TYPES.INT8, (scales, [0] * len(scales), axis))
        unit = self.scale(x) * scales
        b = self.g.const("bias", np.round(bias / unit), TYPES.INT32, (unit, [0] * len(unit), 0))
        return w, b, bias

    def leaky(self, x):
        out = self.output(x, self.g.shape(x))
        return self.g.op(OPS.LEAKY_RELU, [x], [out], "LeakyReluOptions", alpha=SLOPE)

    def conv(self, x, c_out, kernel, stride=1, dilation=1, groups=1, depthwise=False):
        left = (kernel - 1) * dilation + 1 - stride
        if left > 0:
            handle, past = self.variable([1, left, 1, self.g.shape(x)[3]])
            joined = self.concat(1, past, self.dequantize(x))
            if self.is_int8(x):
                joined = self.g.op(OPS.QUANTIZE, [joined], [self.like(x, self.g.shape(joined))])
            end = self.slice(joined, self.g.shape(joined)[1] - left)
            self.assign(handle, self.dequantize(end))
            x = joined
        _, n_steps, _, c_in = self.g.shape(x)
        out = self.output(x, [1, (n_steps - (kernel - 1) * dilation - 1) // stride + 1, 1, c_out])
        fields = {"padding": 1, "strideW": 1, "strideH": stride, "dilationWFactor": 1, "dilationHFactor": dilation}
        if depthwise:
            w, b, _ = self.parameters([1, kernel, 1, c_in], kernel, x)
            options = "DepthwiseConv2DOptions"
            return self.g.op(OPS.DEPTHWISE_CONV_2D, [x, w, b], [out], options, depthMultiplier=1, **fields)
        w, b, _ = self.parameters([c_out, kernel, 1, c_in // groups], kernel * c_in // groups, x)
        return self.g.op(OPS.CONV_2D, [x, w, b], [out], "Conv2DOptions", **fields)

    def add(self, a, b):
        return self.g.op(OPS.ADD, [a, b], [self.output(a, self.g.shape(a))], "AddOptions")

    def transposed(self, x, c_out, kernel, stride):
        _, n_in, _, c_in = self.g.shape(x)
        n_out, n_beyond = n_in * stride, kernel - stride
        handle, past = self.variable([1, n_beyond, 1, c_out])
        zeros = self.g.const("zeros", np.zeros([1, n_out, 1, c_out], np.float32))
        added = self.concat(1, past, zeros)
        w, b, bias = self.parameters([c_out, kernel, 1, c_in], c_in * kernel // stride, x, per_channel=False)
        made = self.output(x, [1, n_out + n_beyond, 1, c_out])
        shape = self.g.ints(1, n_out + n_beyond, 1, c_out)
        fields = {"padding": 1, "strideW": 1, "strideH": stride}
        self.g.op(OPS.TRANSPOSE_CONV, [shape, w, x, b], [made], "TransposeConvOptions", **fields)
        total = self.add(self.dequantize(made), added)
        beyond = self.slice(total, n_out)
        less = self.act(self.g.shape(beyond))
        bias = b if not self.is_int8(x) else self.g.const("bias", bias)
        self.g.op(OPS.SUB, [beyond, bias], [less], "SubOptions")
        self.assign(handle, less)
        return self.slice(total, 0, n_out)

    def split(self, x, n_parts):
        shape = self.g.shape(x)
        shape[3] //= n_parts
        outputs = [self.like(x, shape) for _ in range(n_parts)]
        axis = self.g.const("axis", np.array(3, np.int32), TYPES.INT32)
        self.g.op(OPS.SPLIT, [axis, x], outputs, "SplitOptions", numSplits=n_parts)
        return outputs

    def reshape(self, x, shape):
        return self.g.op(OPS.RESHAPE, [x, self.g.ints(*shape)], [self.like(x, shape)], "ReshapeOptions")

    def finish(self, x, output):
        add_signature(self.model, "serving_default", 0, [("input", x)], [("output", output)])
        return pack(self.model)


def residual(net, x, dilation, integers_from=None):
    """`x + inner(x)`; the inner network may leave the floats before or after its first two filters."""
    channels = net.g.shape(x)[3]
    y = net.leaky(x)
    y = net.quantize(y) if integers_from == "first" else y
    y = net.conv(y, channels, 3, dilation=dilation, depthwise=True)
    y = net.conv(y, channels, 1)
    y = net.quantize(y) if integers_from == "last" else y
    y = net.conv(net.leaky(y), channels, 1, groups=2)
    return net.add(y if net.is_int8(x) else net.dequantize(y), x)


def encoder(ranges=None):
    net = Net(1, ranges)
    x = net.g.tensor("audio", TYPES.FLOAT32, [1, HOP])
    y = net.conv(net.reshape(x, [1, HOP, 1, 1]), 8, 8, 4)
    y = residual(net, y, 1)
    y = net.conv(net.leaky(y), 16, 4, 2, groups=2)
    y = net.quantize(residual(net, y, 1, "last"))
    y = residual(net, y, 3)
    y = net.conv(net.leaky(y), 16, 4, 2, groups=4)
    y = net.conv(net.leaky(y), DIM, 3, groups=2)
    return net, net.finish(x, net.dequantize(net.reshape(y, [1, 1, DIM])))


def decoder(ranges=None):
    net = Net(2, ranges)
    x = net.g.tensor("latents", TYPES.FLOAT32, [1, 1, DIM])
    y = net.conv(net.reshape(x, [1, 1, 1, DIM]), 16, 3, groups=2)
    parts = net.split(net.quantize(net.leaky(y)), 2)
    y = net.concat(3, *(net.transposed(part, 8, 4, 2) for part in parts))
    y = net.quantize(residual(net, y, 1, "first"))
    y = residual(net, y, 3)
    parts = net.split(net.leaky(y), 2)
    y = net.concat(3, *(net.transposed(part, 4, 4, 2) for part in parts))
    y = residual(net, y, 1)
    # The residuals have let the signal grow.
    net.gain = 0.08
    y = net.transposed(net.leaky(y), 1, 8, 4)
    return net, net.finish(x, net.reshape(y, [1, HOP]))


def quantizer(codebooks):
    model = new_model()
    g = Graph(model, "decode")
    codes = g.tensor("codes", TYPES.INT32, [N_STAGES, 1, 1])
    zero, minus_one = (g.const("n", np.array(n, np.int32), TYPES.INT32) for n in (0, -1))
    rows = g.op(OPS.MAXIMUM, [codes, zero], [g.tensor("rows", TYPES.INT32, [N_STAGES, 1, 1])], "MaximumMinimumOptions")
    flat = g.op(OPS.RESHAPE, [codes, g.ints(N_STAGES)], [g.tensor("flat", TYPES.INT32, [N_STAGES])], "ReshapeOptions")
    given = g.op(OPS.NOT_EQUAL, [flat, minus_one], [g.tensor("given", TYPES.BOOL, [N_STAGES])], "NotEqualOptions")
    mask = g.op(OPS.CAST, [given], [g.tensor("mask", TYPES.FLOAT32, [N_STAGES])], "CastOptions")
    total = None
    for k, codebook in enumerate(codebooks):
        one = g.tensor("one", TYPES.FLOAT32, [])
        g.op(OPS.STRIDED_SLICE, [mask, g.ints(k), g.ints(k + 1), g.ints(1)], [one], "StridedSliceOptions", shrinkAxisMask=1)
        row = g.tensor("row", TYPES.INT32, [1, 1])
        bounds = g.ints(k, 0, 0), g.ints(k + 1, 0, 0), g.ints(1, 1, 1)
        masks = {"beginMask": 6, "endMask": 6, "shrinkAxisMask": 1}
        g.op(OPS.STRIDED_SLICE, [rows, *bounds], [row], "StridedSliceOptions", **masks)
        book = g.const("codebook", codebook)
        entry = g.op(OPS.GATHER, [book, row], [g.tensor("entry", TYPES.FLOAT32, [1, 1, DIM])], "GatherOptions")
        masked = g.op(OPS.MUL, [entry, one], [g.tensor("masked", TYPES.FLOAT32, [1, 1, DIM])], "MulOptions")
        if total is None:
            total = masked
        else:
            total = g.op(OPS.ADD, [total, masked], [g.tensor("sum", TYPES.FLOAT32, [1, 1, DIM])], "AddOptions")
    add_signature(model, "decode", 0, [("encoding_indices", codes)], [("output_0", total)])

    g = Graph(model, "encode")
    latent = g.tensor("latent", TYPES.FLOAT32, [1, 1, DIM])
    residual, found = latent, []
    for codebook in codebooks:
        book = g.const("codebook", codebook[None])
        squares = g.tensor("squares", TYPES.FLOAT32, [1, SIZE, DIM])
        g.op(OPS.SQUARED_DIFFERENCE, [residual, book], [squares], "SquaredDifferenceOptions")
        distances = g.tensor("distances", TYPES.FLOAT32, [1, SIZE])
        g.op(OPS.SUM, [squares, g.ints(2)], [distances], "ReducerOptions", keepDims=False)
        best = g.tensor("best", TYPES.INT32, [1])
        g.op(OPS.ARG_MIN, [distances, g.ints(1)], [best], "ArgMinOptions", outputType=TYPES.INT32)
        found.append(best)
        if len(found) < N_STAGES:
            entry = g.tensor("entry", TYPES.FLOAT32, [1, DIM])
            g.op(OPS.GATHER, [g.const("codebook", codebook), best], [entry], "GatherOptions")
            less = g.tensor("residual", TYPES.FLOAT32, [1, 1, DIM])
            residual = g.op(OPS.SUB, [residual, entry], [less], "SubOptions")
    codes = g.tensor("codes", TYPES.INT32, [N_STAGES, 1])
    g.op(OPS.PACK, found, [codes], "PackOptions", valuesCount=N_STAGES, axis=0)
    add_signature(model, "encode", 1, [("input_frames", latent)], [("output_0", codes)])
    return pack(model)


def run(content, frames, taps=None):
    """Runs a model frame by frame: outputs, or the ranges of the tensors `taps` (name to index)."""
    if taps is not None:
        model = S.ModelT.InitFromObj(S.Model.GetRootAs(content, 0))
        model.subgraphs[0].outputs = np.array(list(taps.values()), np.int32)
        model.signatureDefs = []
        content = pack(model)
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    made = [detail["index"] for detail in interpreter.get_output_details()]
    outputs = []
    for frame in frames:
        interpreter.set_tensor(given["index"], frame.reshape(given["shape"]).astype(np.float32))
        interpreter.invoke()
        outputs.append([interpreter.get_tensor(i).reshape(-1).copy() for i in made])
    if taps is None:
        return np.array([o[0] for o in outputs])
    # The outermost values are cut off, so that integers also saturate.
    spread = [np.quantile(np.concatenate([o[i] for o in outputs]), [0.0005, 0.9995]) for i in range(len(taps))]
    return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in zip(taps, spread)}


def calibrated(build, frames):
    net, content = build()
    return build(run(content, frames, net.named))[1]


def make_signal(n_samples, seed):
    """A swelling chirp and noise, i16."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples)
    swell = 0.5 + 0.5 * np.sin(t / 150)
    chirp = np.sin(t * (0.05 + t / 40_000))
    signal = 0.5 * swell * chirp + 0.3 * (1 - swell) * rng.normal(size=n_samples)
    return np.clip(np.round(signal * 32768), -32768, 32767).astype(np.int16)


def train_codebooks(latents):
    """Codebooks in which every entry is near some residual."""
    rng, residuals, codebooks = np.random.default_rng(3), latents.copy(), []
    for _ in range(N_STAGES):
        book = residuals[rng.choice(len(residuals), SIZE, replace=False)]
        for _ in range(5):
            nearest = ((residuals[:, None] - book) ** 2).sum(2).argmin(1)
            means = [residuals[nearest == i].mean(0) if (nearest == i).any() else book[i] for i in range(SIZE)]
            book = np.array(means, np.float32)
        codebooks.append(book)
        residuals = residuals - book[((residuals[:, None] - book) ** 2).sum(2).argmin(1)]
    return codebooks


def reference(models, signal, lengths, kept):
    """What the runtime makes of the first samples of `signal`: the entries of a file of vectors."""
    enc, quant, dec = models
    interpreter = Interpreter(model_content=quant, num_threads=1)
    interpreter.allocate_tensors()
    encode, decode = (interpreter.get_signature_runner(key) for key in ("encode", "decode"))
    n_stages = int(decode.get_input_details()["encoding_indices"]["shape"][0])
    extra = {"num_quantizers": np.int32(n_stages)} if "num_quantizers" in encode.get_input_details() else {}

    def dequantize(codes):
        padded = np.full((len(codes), n_stages, 1, 1), -1, np.int32)
        padded[:, : codes.shape[1], 0, 0] = codes
        return np.array([decode(encoding_indices=row)["output_0"].reshape(-1) for row in padded])

    # The entry of one stage is what decodes from its code alone.
    single = np.full((n_stages, SIZE, n_stages), -1)
    for stage in range(n_stages):
        single[stage, :, stage] = np.arange(SIZE)
    codebooks = dequantize(single.reshape(-1, n_stages)).reshape(n_stages, SIZE, -1)

    entries = {"vector.input": signal[None]}
    hop = run_shape(enc)
    for n in lengths:
        audio = np.pad(signal[:n].astype(np.float32) / 32768, (0, -n % hop))
        latents = run(enc, audio.reshape(-1, hop))
        codes = np.array([encode(input_frames=x[None, None], **extra)["output_0"].reshape(-1) for x in latents])
        margins = np.empty(codes.shape, np.float32)
        for frame, row in enumerate(codes):
            residual = latents[frame].astype(np.float64)
            for stage, code in enumerate(row):
                distances = np.sort(np.sqrt(((residual - codebooks[stage]) ** 2).sum(1)))
                margins[frame, stage] = (distances[1] - distances[0]) / 2 / np.linalg.norm(latents[frame])
                residual = residual - codebooks[stage][code]
        entries[f"vector.{n}.codes"] = codes.T.astype(np.uint8).copy()
        entries[f"vector.{n}.margins"] = margins.T.copy()
        for k in kept:
            decoded = run(dec, dequantize(codes[:, :k])).reshape(1, -1)
            entries[f"vector.{n}.audio.{k}"] = decoded.astype(np.float32)
        used = [len(set(column)) for column in codes.T]
        print(f"{n} samples: {len(codes)} frames, entries used per codebook {used}, smallest margin "
              f"{margins.min():.2g}, latents within {np.abs(latents).max():.3g}, decoded within {np.abs(decoded).max():.3g}")
    return entries


def run_shape(content):
    """Samples per frame."""
    return int(np.prod(Interpreter(model_content=content).get_input_details()[0]["shape"]))


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/vectors")
    training = (make_signal(400 * HOP, 11) / 32768).reshape(-1, HOP)
    enc = calibrated(encoder, training)
    latents = run(enc, training)
    quant = quantizer(train_codebooks(latents))
    dec = calibrated(decoder, latents)
    (folder / "soundstream_tiny").mkdir(parents=True, exist_ok=True)
    for name, content in zip(NAMES, (enc, quant, dec)):
        (folder / "soundstream_tiny" / name).write_bytes(content)
    entries = reference((enc, quant, dec), make_signal(2400, 12), [1, 100, 2400], [1, N_STAGES])
    save_file(entries, folder / "soundstream_tiny.safetensors")

    if len(sys.argv) > 2:
        models = [(Path(sys.argv[2]) / name).read_bytes() for name in NAMES]
        entries = reference(models, make_signal(8000, 13), [500, 8000], [16, 30, 46])
        save_file(entries, folder / "soundstream_lyra.safetensors")


if __name__ == "__main__":
    main()
