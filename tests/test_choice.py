"""devices.ipynb: a device keeps the general network unless its held-out clips speak for one of its own."""
from contextlib import redirect_stdout
from io import StringIO

import nbformat
import pandas as pd
import pytest
import torch

from asc.backbone.tensors import read_tensors
from asc.core import InputError, project_root, read_json, write_json
from asc.data.splits import read_split, read_test
from asc.experiment.recipe import data_of_run, train_and_save
from asc.load import open_model
from asc.score.runs import read_run
from asc.train import choice, tune
from asc.train.options import TrainingOptions

SMALL = dict(backbone='cnn3', frontend='cnn3', pipeline='none', epochs=1, bs=64)
FURTHER = dict(parts=['full'], keep='full', epochs=5, lr=3e-3, bs=20, keep_start=True)


def several_devices(corpus):
    "Clips to train on: of device a at 20 places, and of b and s1 at six more; clips to test on at four others"
    train, test = read_split(corpus, 100).iloc[::2], read_test(corpus)
    inside = test.scene.isin(corpus.scenes[:6])
    own = inside & (test.device.isin(['a', 'b']) & (test.snippet < 6) | (test.device == 's1') & (test.snippet < 2))
    return dict(train=pd.concat([train, test[own]]), test=test[~inside & (test.snippet == 0)])


@pytest.fixture(scope='module')
def general(packed, tmp_path_factory):
    "A network that has learnt a little, part of whose training list was held out; beside it one with nothing held out"
    folder = tmp_path_factory.mktemp('general')
    for name, rows in several_devices(packed[0]).items():
        rows[['filename']].to_csv(folder/f'{name}.csv', index=False)
    lists = dict(train_list=str(folder/'train.csv'), test_list=str(folder/'test.csv'), data_dir=str(packed[0].dir))
    for name, valid in dict(held=.4, all=0.).items():
        with redirect_stdout(StringIO()): train_and_save(folder/name, TrainingOptions(valid=valid, **lists, **SMALL))
        write_json(folder/name/'metrics.json', dict(macro_accuracy=.1))
    return folder/'held'


def devices(folder, out, **parameters):
    "Run the cells of devices.ipynb here"
    cells = nbformat.read(project_root()/'nbs/devices.ipynb', 4).cells
    first, *others = [cell.source.replace('%matplotlib inline', '') for cell in cells if cell.cell_type == 'code']
    space = dict(__name__='devices', get_ipython=None)
    given = dict(FURTHER, folder=str(folder), device='cpu', out=str(out)) | parameters
    exec('\n'.join([first, *(f'{name} = {value!r}' for name, value in given.items())]), space)
    with redirect_stdout(StringIO()) as said:
        for cell in others: exec(cell, space)
    return said.getvalue()


def choices_of(out): return {row['device']: row for row in read_json(out/'params.json')['choices']}


def test_tuning_that_helps_is_taken(general, tmp_path, monkeypatch):
    "By clips that the general run held out, and by no other; what was chosen is in the record, in a table and told"
    heard, answers = [], choice.predictions

    def listened(model, clips):
        heard.append(set(clips.rows.filename))
        return answers(model, clips)

    monkeypatch.setattr(choice, 'predictions', listened)
    devices(general, tmp_path/'out')
    data = data_of_run(read_run(general))
    held = {name: data.valid[data.valid.device == name] for name in 'ab'}
    assert heard == [set(rows.filename) for rows in held.values() for _ in range(2)]
    assert not set(data.valid.location) & set(data.train.location)
    found = choices_of(tmp_path/'out')
    assert found['a']['after'] > found['a']['before'] and not found['a']['kept']
    assert {name: row['clips'] for name, row in found.items()} == dict(a=len(held['a']), b=len(held['b']), s1=4)
    assert found['s1']['kept'] and found['s1']['after'] is None
    own = [name for name, row in found.items() if not row['kept']]
    assert list(open_model(tmp_path/'out').network.device_models) == own
    table = pd.read_csv(tmp_path/'out/choices.csv').set_index('device')
    assert (table.loc['a', 'network'], table.loc['s1', 'network']) == ('its own', 'start')
    result = ' '.join(read_json(tmp_path/'out/params.json')['result'])
    assert f"{', '.join(own)} got a network of its own" in result
    assert 'the general network stays: s1 (4)' in result


def test_tuning_that_hurts_leaves_the_start(general, tmp_path):
    "Weights and answers are those of the general network to the last bit, and no file holds another"
    devices(general, tmp_path/'out', lr=3.)
    found = choices_of(tmp_path/'out')
    assert all(row['kept'] for row in found.values()) and found['a']['after'] <= found['a']['before']
    assert not read_tensors(tmp_path/'out/devices.safetensors', 'networks of devices').tensors
    left, start = open_model(tmp_path/'out'), open_model(general).network
    assert all(torch.equal(value, start.backbone.state_dict()[name])
               for name, value in left.network.base_model.state_dict().items())
    wave = torch.randn(3, 44100, generator=torch.Generator().manual_seed(0)) / 10
    with torch.no_grad():
        assert torch.equal(left.network(wave, torch.tensor([0, 1, -1])), start(wave))
    scores = read_json(tmp_path/'out/metrics.json')
    assert scores['macro_accuracy'] == scores['general_metrics']['macro_accuracy']


def test_a_killed_run_goes_on_to_the_same_bits(general, tmp_path, monkeypatch):
    "Behind the last device that was done; a device that was done is not trained again"
    whole, half = tmp_path/'whole', tmp_path/'half'
    options = dict(parts=['bn', 'full'], keep='bn', keep_start=False, epochs=1)
    devices(general, whole, **options)
    make, trained = tune.tune, []

    def killed(model, train, *rest, **keywords):
        trained.append(train.rows.device.iloc[0])
        if len(trained) == 3: raise KeyboardInterrupt
        return make(model, train, *rest, **keywords)

    monkeypatch.setattr(tune, 'tune', killed)
    with pytest.raises(KeyboardInterrupt): devices(general, half, **options)
    assert (half/'checkpoint.pt').is_file() and not (half/'metrics.json').exists()
    with pytest.raises(InputError, match='lr was 0.003, is 0.1'): devices(general, half, resume=True, lr=.1, **options)
    devices(general, half, resume=True, **options)
    assert trained == ['a', 'b', 's1', 's1', 'a', 'b', 's1']
    for name in ('model.json', 'predictions.csv', 'predictions_full.csv', 'metrics.json'):
        assert (whole/name).read_bytes() == (half/name).read_bytes()
    for name in ('devices.safetensors', 'model.safetensors'):  # whose header has its entries in any order
        once, again = (read_tensors(folder/name, 'weights') for folder in (whole, half))
        assert once.metadata == again.metadata and once.tensors.keys() == again.tensors.keys()
        assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in once.tensors.items())
    assert not (half/'checkpoint.pt').exists()
    assert 'choices' not in read_json(whole/'metrics.json') and not (whole/'choices.csv').exists()


def test_nothing_to_choose_by(general, tmp_path):
    "One sentence before anything is trained or written"
    with pytest.raises(InputError, match='keep_start: .*/all held out no clips .*give a run with valid above 0'):
        devices(general.parent/'all', tmp_path/'out')
    assert not (tmp_path/'out/params.json').exists()
