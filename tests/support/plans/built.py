"""Plans built of a bundle's graphs."""

import torch

from medclipsam.export.tensorrt import build_plan

CPU = torch.device("cpu")


def build(bundle, name="score", rows=4, precision="fp32", **settings):
    return build_plan(bundle, name, precision, rows, CPU, **settings)
