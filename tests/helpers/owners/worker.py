"""Programs that own checkpoint formats, in their interpreter: transformers, GPTQModel.

python worker.py jobs.json: each job is [function, folder, options]; a result is written as
folder.npz, an error as folder.txt.
"""

import json
import os
import sys
import traceback

os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"  # compiling it takes minutes

import numpy as np
import torch
from safetensors.torch import save_file

IDS = torch.tensor(np.arange(3, 35).reshape(2, 16) * 7 % 96)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits.float().numpy()


def load_transformers(folder, dequantize=False):
    """Logits of a folder that transformers loads, in float32."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    options = {}
    if dequantize:
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return {"logits": logits(model)}


def load_gptqmodel(folder, backend):
    """Logits of a folder that GPTQModel loads, in float16 and with its weights in float32."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", bos_token="w1",
                            eos_token="w2").save_pretrained(folder)
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND[backend],
                           dtype=torch.float16).model
    result, count = {"half": logits(model)}, 0
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseQuantLinear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, float_linear(layer))
            count += 1
    return {**result, "count": count, "logits": logits(model.float())}


def float_linear(layer):
    layer.scales = layer.scales.float()
    if hasattr(layer, "dequantize_weight"):
        weight = layer.dequantize_weight()
    else:
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        weight = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.bits,
                                 layer.group_size)
    linear = torch.nn.Linear(*weight.shape, bias=False)
    linear.weight.data = weight.T.float().contiguous()
    return linear


def converted_awq(folder):
    """Weight of the layer "fc" that compressed-tensors reads from a file in the format AWQ."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    from safetensors.torch import load_file

    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)["quantization_config"]
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    found = AutoAWQConverter.from_autoawq_config(config).process(tensors)
    shape, scale = torch.Size(found["fc.weight_shape"].tolist()), found["fc.weight_scale"].double()
    integers = unpack_from_int32(found["fc.weight_packed"], 4, shape).double()
    zeros = unpack_from_int32(found["fc.weight_zero_point"], 4, (shape[0], scale.shape[1]),
                              packed_dim=0).double()
    size = shape[1] // scale.shape[1]
    weight = (integers - zeros.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)
    return {"weight": weight.T.numpy()}


def random_layer(bits, size, symmetric, rows=64, columns=96):
    """Linear layer, scales and zero points [N, G] of 16 bits, as a calibration gives them."""
    torch.manual_seed(bits)
    linear = torch.nn.Linear(rows, columns, bias=False)
    groups = linear.weight.data.reshape(columns, rows // size, size)
    steps, middle = 2 ** bits - 1, 2 ** (bits - 1)
    if symmetric:
        scale = groups.abs().amax(-1) / (middle - 1)
        zeros = torch.full_like(scale, middle)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / steps
        zeros = (-low / scale).round().clamp(1, steps)
    scale = scale.half().float()
    codes = (groups / scale[..., None] + zeros[..., None]).round().clamp(0, steps)
    linear.weight.data = ((codes - zeros[..., None]) * scale[..., None]).reshape(columns, rows)
    return linear, scale, zeros


def save_layer(folder, tensors, config):
    os.makedirs(folder)
    save_file({f"fc.{name}": value.contiguous() for name, value in tensors.items()},
              os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump({"quantization_config": config}, file)


def write_gptq(folder, bits, desc_act=False, version="gptq_v2"):
    """Write a layer that GPTQModel packs."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    size = 32
    linear, scale, zeros = random_layer(bits, size, symmetric=version == "gptq")
    groups = torch.arange(64, dtype=torch.int32) // size
    if desc_act:
        order = torch.randperm(64)
        linear.weight.data, groups = linear.weight.data[:, order], groups[order]
    layer = TorchLinear(bits=bits, group_size=size, sym=version == "gptq", desc_act=desc_act,
                        in_features=64, out_features=96, bias=False, pack_dtype=torch.int32)
    layer.pack(linear, scale, zeros, groups)
    if version == "gptq":
        convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=size))
    save_layer(folder, {name: getattr(layer, name) for name in
                        ("qweight", "qzeros", "scales", "g_idx")},
               {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": desc_act,
                "sym": version == "gptq", "checkpoint_format": version})
    return {"weight": linear.weight.data.T.numpy()}


def write_awq(folder):
    """Write a layer that GPTQModel packs in the format AWQ."""
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    linear, scale, zeros = random_layer(4, 32, symmetric=False)
    layer = AwqTorchLinear(bits=4, group_size=32, sym=False, desc_act=False, in_features=64,
                           out_features=96, bias=False, pack_dtype=torch.int32,
                           register_buffers=True)
    layer.pack(linear, scale, zeros)
    save_layer(folder, {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")},
               {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
                "version": "gemm"})
    return {"weight": linear.weight.data.T.numpy()}


def write_compressed_tensors(folder, bits, size=None, symmetric=True, activation=False):
    """Write a layer that compressed-tensors compresses."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )

    layout = "int-quantized" if activation else "pack-quantized"
    linear, scale, zeros = random_layer(bits, size or 64, symmetric)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(
            num_bits=bits, symmetric=symmetric, strategy="group" if size else "channel",
            group_size=size),
        input_activations=QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
        if activation else None)
    state = {"weight": linear.weight.data, "weight_scale": scale,
             "weight_zero_point": (zeros - 2 ** (bits - 1)).to(torch.int8)}
    compressor = BaseCompressor.load_from_registry(layout)
    tensors = compressor.compress(state, scheme)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=layout,
                                quantization_status="compressed")
    save_layer(folder, tensors, json.loads(config.model_dump_json()))
    return {"weight": linear.weight.data.T.numpy()}


def main(path):
    with open(path) as file:
        jobs = json.load(file)
    for function, folder, options in jobs:
        try:
            np.savez(f"{folder}.npz", **globals()[function](folder, **options))
        except Exception:
            with open(f"{folder}.txt", "w") as file:
                file.write(traceback.format_exc())


if __name__ == "__main__":
    main(sys.argv[1])
