"""Golden Stick PTQ configurations, and a process that loads their checkpoints in deploy mode.

    PYTHONPATH=... python golden_stick_worker.py FOLDER

For each of :data:`RUNS` it loads ``FOLDER/<name>``, writes the logits of ``FOLDER/x.npy`` to
``FOLDER/<name>.loaded.npy`` and prints the name and the summary.
"""

import dataclasses
import sys
import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)
from collections import OrderedDict

import numpy as np
import paddle
from small_transformer import Decoder

from paddleq.frontends.golden_stick import PTQ, NetworkHelper, PTQConfig

W8A8 = {"act_quant_dtype": "int8"}
W4A8 = {"weight_quant_dtype": "int4", "act_quant_dtype": "int8",
        "act_quant_granularity": "per_token", "precision_recovery": "gptq"}
GROUP = {"weight_quant_granularity": "per_group", "group_size": 64}
W4 = {"weight_quant_dtype": "int4", **GROUP}
KV = {"kvcache_quant_dtype": "int8"}
ONLY_KV = {"weight_quant_dtype": None, **KV}
RUNS = {
    "rtn": {},
    "smooth": {**W8A8, "outliers_suppression": "smooth", **KV},
    "token": {**W8A8, "act_quant_granularity": "per_token", **KV,
              "kvcache_quant_granularity": "per_token"},
    "awq": {**W4, "outliers_suppression": "awq"},
    "gptq": {**W4, "precision_recovery": "gptq", "algo_args": {"desc_act": True}},
    "kv": ONLY_KV,
}
POLICIES = OrderedDict({r"layers\.1\.down": None, r"head": PTQConfig(weight_quant_dtype="int4")})


class Layers(NetworkHelper):
    """The helper of the small transformer."""

    def decoder_layers(self, network):
        return [(f"layers.{i}", layer) for i, layer in enumerate(network.layers)]


def deploy_policies():
    return OrderedDict((pattern, policy and dataclasses.replace(policy, mode="deploy"))
                       for pattern, policy in POLICIES.items())


def main(folder):
    paddle.seed(99)  # other numbers than the saved ones
    x = paddle.to_tensor(np.load(f"{folder}/x.npy"))
    for name, config in RUNS.items():
        ptq = PTQ(PTQConfig("deploy", **config), deploy_policies())
        network = ptq.convert(ptq.apply(Decoder(), Layers()), f"{folder}/{name}")
        np.save(f"{folder}/{name}.loaded.npy", network(x).numpy())
        print(name)
        ptq.summary(network)


if __name__ == "__main__":
    main(sys.argv[1])
