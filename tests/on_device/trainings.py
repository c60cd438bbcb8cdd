"""Trainings on the CPU and on the device, of a few clips, and what they end with."""
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from unittest.mock import patch

import pandas as pd
import torch

from asc.data.splits import read_split
from asc.experiment.recipe import TrainingData, create_training
from asc.train.optimizers import optimizers
from asc.train.options import TrainingOptions
from emulated import is_here
from twins import assert_same, twice

SMALL_CP = dict(backbone_args=dict(base=8, blocks=[1, 1, 1], strides={}))
# Adam divides by the size of gradients: where that is almost nothing, a rounding becomes a step
SMOOTH = {name: partial(make, eps=1.) for name, make in optimizers.items()}
STEPS = ['resample', 'mel', {'freq_mask': {'size': 48}}, 'log', {'freq_mixstyle': {'p': .4, 'alpha': .3}}]


def few_clips(packed, train=6, valid=4):
    "Clips of as many scenes as there are clips"
    corpus, store = packed
    rows = read_split(corpus, 100)
    spread = rows.iloc[::len(rows)//(train + valid)]
    return TrainingData(store, spread[:train], spread[-valid:], corpus.scenes, corpus.devices)


def train(data, place, folder, cbs=(), **options):
    "A learner that has been trained on a device"
    options = TrainingOptions(device=place.type, **options)
    with patch.dict(optimizers, SMOOTH): learn, fit = create_training(data, options, folder/f'{place.type}.csv', cbs)
    with redirect_stdout(StringIO()), learn.no_bar(): fit()
    return learn


def ended_with(learn):
    "The weights of a learner; its figures by epoch, which must not live on a device"
    figures = [value for row in learn.recorder.values for value in row]
    assert not any(is_here(getattr(value, 'device', None)) for value in figures)
    return learn.model.state_dict()


def check_training_twice(data, folder, tolerance=1e-5, **options):
    "The same weights, and the same history; the two learners"
    learners = []

    def run(place):
        learners.append(train(data, place, folder, **options))
        return ended_with(learners[-1])
    assert_same(*twice(run), tolerance)
    ours, theirs = (pd.read_csv(folder/f'{name}.csv').drop(columns='time', errors='ignore')
                    for name in ('cpu', 'emulated'))
    pd.testing.assert_frame_equal(theirs, ours, rtol=tolerance, atol=tolerance)
    return learners
