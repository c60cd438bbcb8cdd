"""An encoder of a stranger: as code, as a module, and as an ONNX file."""
import warnings

import pytest
import torch

RATE, SECOND, WIDTH = 8000, 8000, 6
CODE = '''
import torch
from torch import nn

class Filters(nn.Module):
    "Rectified random filters: a vector for each tenth of a second, or one for all"
    def __init__(self, tokens=False):
        super().__init__()
        self.filters, self.tokens = nn.Conv1d(1, 6, 64, 32), tokens
    def forward(self, wave):
        x = self.filters(wave[:, None]).relu()
        if self.tokens: return nn.functional.adaptive_avg_pool1d(x, 10).transpose(1, 2)
        return x.mean(2)

def level(wave): return torch.stack([wave.abs().mean(1), wave.abs().amax(1)], 1)
'''


def filters(tokens=False):
    "The encoder of that file, its weights those of seed 0"
    space = {}
    exec(CODE, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return space['Filters'](tokens).eval()


def to_onnx(module, path, wave=None, free=(0,), **options):
    "A module as an ONNX file"
    pytest.importorskip('onnxruntime')
    wave = torch.zeros(1, SECOND) if wave is None else wave
    axes = {'wave': {axis: f'axis{axis}' for axis in free}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(module, (wave,), path, input_names=['wave'], dynamo=False, dynamic_axes=axes, **options)
    return path
