"""What loggers leave behind after a training that was killed and resumed, read in the libraries' own formats."""
import json
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import nn

from asc.core import InputError, seed_everything
from asc.score.plots import plot_history
from asc.train.learner import create_learner, fit
from asc.train.loggers import check_log, create_loggers
from asc.train.resume import Checkpoint


class Killed(Exception): pass


class Kill(Callback):
    "Dies in this epoch, counted from 1: after the logs have its row, before the checkpoint"
    order = 99

    def __init__(self, number): self.number = number

    def after_epoch(self):
        if self.epoch + 1 == self.number: raise Killed('killed')


def training(folder, log, resume=False, kill=0):
    "Four epochs of nothing much into `folder`"
    seed_everything(0)
    rows = list(zip(torch.randn(32, 4), torch.arange(32) % 2))
    dls = DataLoaders.from_dsets(rows, rows[:8], bs=8, num_workers=0, device='cpu')
    logs = create_loggers(
        log, folder, dict(lr=.01, steps=['mel', {'roll': {'seconds': .1}}], backbone='linear')
    )
    cbs = [*logs, *([Kill(kill)] if kill else []), Checkpoint(folder, resume=resume)]
    learn = create_learner(dls, nn.Linear(4, 2), history=folder/'history.csv', cbs=cbs)
    with learn.no_bar(): fit(learn, 4, .01)
    return logs


def killed_and_resumed(folder, log):
    "history.csv of a training that died in epoch 3, and of which epoch 3 was logged already"
    with pytest.raises(Killed): training(folder, log, kill=3)
    logs = training(folder, log, resume=True)
    history = pd.read_csv(folder/'history.csv')
    table = pd.DataFrame(dict(accuracy=[50., np.nan]), index=['park', 'tram'])
    for each in logs:
        each.finish(
            dict(macro_accuracy=.5, class_accuracy=dict(park=.5, tram=np.nan), corpus='x'),
            dict(class_wise=table),
            dict(history=plot_history(history)),
        )
    return history


def test_tensorboard(tmp_path):
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    history = killed_and_resumed(tmp_path, 'tensorboard')
    log = reader.EventAccumulator(
        str(tmp_path/'tensorboard'),
        size_guidance=dict.fromkeys(('scalars', 'tensors', 'images'), 0),
    ).Reload()
    for name in history.columns.drop('epoch'):
        events = log.Scalars(name)
        assert [e.step for e in events] == [1, 2, 3, 4]  # epoch 3 once
        assert [e.value for e in events] == pytest.approx(history[name].tolist(), rel=1e-6)
    def text(name):
        return log.Tensors(f'{name}/text_summary')[0].tensor_proto.string_val[0].decode()
    assert '| tram | – |' in text('class_wise')
    assert '| backbone | linear |' in text('parameters')
    assert log.Images('history')[0].encoded_image_string[1:4] == b'PNG'
    assert log.Scalars('final/class_accuracy/park')[0].value == .5
    assert 'final/class_accuracy/tram' not in log.Tags()['scalars']


def records(path):
    "The protobuf records of a .wandb file: a header of 7 bytes, then LevelDB's log format"
    from wandb.proto.wandb_internal_pb2 import Record
    data = path.read_bytes()
    position = 7
    part = b''
    assert data[:4] == b':W&B'
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, size, kind = struct.unpack('<IHB', data[position:position + 7])
        if kind == 0:
            position += 32768 - position % 32768
            continue
        part += data[position + 7:position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            yield Record.FromString(part)
            part = b''


def items(entries):
    "Name -> value of the entries of a record"
    return {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in entries}


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    for k in ('WANDB_API_KEY', 'WANDB_MODE', 'WANDB_DIR'):
        monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    history = killed_and_resumed(tmp_path, 'wandb')
    files = sorted(tmp_path.glob('wandb/offline-run-*/*.wandb'))
    assert 1 <= len(files) <= 2 and len({f.name for f in files}) == 1  # one id
    entries = list(records(files[-1]))
    rows = [items(r.history.item) for r in entries if r.WhichOneof('record_type') == 'history']
    curves = pd.DataFrame([r for r in rows if 'train_loss' in r]).set_index('epoch')
    assert curves.index.tolist() == [1, 2, 3, 4]
    for name in history.columns.drop('epoch'):
        assert curves[name].tolist() == pytest.approx(history[name].tolist())
    config = {
        k: v
        for r in entries
        if r.WhichOneof('record_type') == 'run'
        for k, v in items(r.run.config.update).items()
    }
    assert config['lr'] == .01
    assert config['steps'] == ['mel', {'roll': {'seconds': .1}}]
    assert any('class_wise/path' in r for r in rows)
    assert list(tmp_path.glob('wandb/offline-run-*/files/media/images/*.png'))
    summary = {
        k: v
        for r in entries
        if r.WhichOneof('record_type') == 'summary'
        for k, v in items(r.summary.update).items()
    }
    assert summary['macro_accuracy'] == .5 and summary['class_accuracy/park'] == .5


def test_a_missing_package_is_named_before_work(monkeypatch):
    monkeypatch.setattr('asc.train.loggers.versions', lambda names: dict.fromkeys(names))
    for log in ('tensorboard', 'wandb', 'tensorboard, wandb'):
        with pytest.raises(InputError, match=r"pip install 'asc\[log\]'"):
            check_log(log)
