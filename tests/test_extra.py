"""Classes under other names, and clips of further corpora: weighted, and to the training list alone."""
import json
import random
import shutil
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from fastai.callback.core import Callback
from torchaudio.transforms import Resample

from asc.core import InputError
from asc.data.classes import with_classes
from asc.data.corpus import load_corpus
from asc.data.splits import read_split, read_test
from asc.experiment.checks import check_training
from asc.experiment.recipe import create_training, data_of_run, read_training_data, train_and_save
from asc.experiment.stacked import train_stacked
from asc.train.clips import ClipData
from asc.train.ddp import SharedClips
from asc.train.epoch import Epoch
from asc.train.learner import make_dls
from asc.train.options import TrainingOptions
from asc.train.resume import Checkpoint
from conftest import ROOT

pytestmark = pytest.mark.usefixtures('one_thread')
ROADS = {'bus': 'road', 'street_traffic': 'road', 'park': 'park'}
SMALL = dict(backbone_args=dict(base=8, blocks=(1, 1, 1), strides={}), epochs=2, bs=8, device='cpu')


def write_corpus(folder, sounds, rate=44100):
    "A corpus in TAU's layout from {name of the file without its end: samples}"
    (folder/'audio').mkdir(parents=True)
    lines = ['filename\tscene_label\tidentifier\tsource_label']
    for name, samples in sounds.items():
        scene, city, location, *_, device = name.split('-')
        lines.append(f'audio/{name}.wav\t{scene}\t{city}-{location}\t{device}')
        sf.write(folder/f'audio/{name}.wav', samples, rate, 'PCM_16')
    (folder/'meta.csv').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return folder


@pytest.fixture(scope='session')
def further(tmp_path_factory):
    "A corpus of six clips of a second of two recordings, whose device the synthetic corpus does not have"
    rng = np.random.default_rng(0)
    names = [f'{scene}-oulu-{place}-0-{k}-phone' for place, scene in enumerate(['Bus', 'Park']) for k in range(3)]
    return write_corpus(tmp_path_factory.mktemp('further')/'phones', {n: rng.normal(0, .1, 44100) for n in names})


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A project of its own, where stores go"
    folder = tmp_path_factory.mktemp('project')
    (folder/'asc').mkdir()
    (folder/'settings.ini').touch()
    (folder/'nbs').symlink_to(ROOT/'nbs')
    return folder


@pytest.fixture
def project(home, monkeypatch):
    monkeypatch.chdir(home)


@pytest.fixture
def extended(short_test, further, project, tmp_path):
    "extended(**entry) -> (options, data) of a run on eight synthetic clips and the further ones, half of them an epoch"
    rows = read_split(load_corpus(short_test), 100)
    rows[rows.scene.isin(list(ROADS))][::7].filename.to_csv(tmp_path/'mine.csv', index=False)
    def extended(entry=None, **more):
        entry = dict(data=str(further), classes={'Bus': 'road', 'Park': 'park'}, weight=.5) | (entry or {})
        options = dict(SMALL, data_dir=str(short_test), train_list=str(tmp_path/'mine.csv'), valid=0.,
                       classes=ROADS, extra=[entry]) | more
        options = TrainingOptions(**options)
        return options, quietly(read_training_data, options)
    return extended


def quietly(call, *args):
    "A call without its printed lines"
    with redirect_stdout(StringIO()): return call(*args)


def names_of_epochs(loader, epochs):
    "The names of the clips of every epoch, in their order"
    return [loader.dataset.rows.filename.iloc[loader_positions(loader)].tolist() for _ in range(epochs)]


def loader_positions(loader):
    loader.randomize()
    return list(loader.get_idxs())


def test_a_run_names_its_classes(short_test, project, tmp_path):
    "Lists, outputs and record are those of the classes that are named; a run that has ended is asked about the same"
    options = TrainingOptions(**SMALL, data_dir=str(short_test), classes=ROADS)
    with redirect_stdout(StringIO()) as said: data = read_training_data(options)
    assert data.names == ['park', 'road'] and set(data.test.scene) == set(data.train.scene) == {'park', 'road'}
    whole = load_corpus(short_test)
    assert len(data.test) == read_test(whole).scene.isin(list(ROADS)).sum()
    assert data.facts['classes'] == ROADS and data.facts['dropped']['tram'] == (whole.meta.scene == 'tram').sum()
    assert 'bus as road' in said.getvalue() and 'left out are' in said.getvalue()
    record = dict(parameters=options.as_dict(), data=data.facts, dir=str(tmp_path))
    assert quietly(data_of_run, record).facts == data.facts
    with pytest.raises(InputError, match='did you mean bus'):
        quietly(read_training_data, TrainingOptions(data_dir=str(short_test), classes={'buss': 'road', 'park': 'park'}))


def test_only_training_takes_in_clips(extended):
    "Names of their own, an unknown device, no row in a table; recorded with what was left out"
    options, data = extended()
    assert data.extra.filename.str.startswith('phones:audio/').all() and len(data.extra) == 6
    assert data.groups and 'phone' not in str(data.groups) and 'phones' not in str(data.test)
    learn, _ = create_training(data, options)
    clips = learn.dls.train_ds
    assert clips.device_id[-6:].tolist() == [-1]*6 and clips.y[-6:].tolist() == [1]*3 + [0]*3
    facts, = data.facts['extra']
    assert (facts['clips'], facts['weight'], facts['left_out']) == (6, .5, {}) and json.dumps(facts)
    assert facts['fingerprint'] and facts['store'] and facts['sound']


def test_extra_is_drawn_anew_each_epoch(extended):
    "Three of six in every epoch, no clip twice, other ones in other epochs; the whole list without a weight below 1"
    options, data = extended()
    learn, _ = create_training(data, options)
    epochs = names_of_epochs(learn.dls.train, 40)
    drawn = [sorted(name for name in names if name.startswith('phones:')) for names in epochs]
    assert {len(set(names)) for names in drawn} == {3} and len({*map(tuple, drawn)}) > 10
    assert {len(names) for names in epochs} == {len(data.train) + 3}
    assert len(learn.dls.train) == -(-(len(data.train) + 3)//8)
    options, data = extended(dict(weight=2.))
    learn, _ = create_training(data, options)
    names, = names_of_epochs(learn.dls.train, 1)
    assert all(names.count(name) == 2 for name in data.extra.filename)


class Stop(Callback):
    "Ends a training after its first epoch, once the checkpoint is written"
    order = 200
    def after_epoch(self): raise KeyboardInterrupt


def test_resumed_to_the_bit(extended, tmp_path):
    "An interrupted training on weighted clips ends in the weights of an undisturbed one"
    options, data = extended()
    ends = []
    for folder, cuts in ('whole', 0), ('cut', 1):
        for part in range(cuts + 1):
            random.seed(part)
            checkpoint = Checkpoint(tmp_path/folder, {}, resume=part > 0)
            learn, fit = create_training(data, options, cbs=[checkpoint, *([Stop()] if part < cuts else [])])
            try:
                with learn.no_bar(): quietly(fit)
            except KeyboardInterrupt: pass
        ends.append(learn.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_ranks_share_an_epoch(extended):
    "Every rank draws the same clips in the same order, and takes its own of every batch"
    options, data = extended()
    learn, _ = create_training(data, options)
    loader, whole, orders, seen = learn.dls.train, learn.dls.train_ds, [], []
    whole.batches = lambda parts: [seen.extend(part) or (torch.zeros(len(part)),)*3 for part in parts]
    for rank in range(2):
        random.seed(rank)                                  # of what else a rank draws
        loader.rng, loader.dataset = random.Random(5), SharedClips(whole, rank, 2)
        orders.append(loader_positions(loader))
        loader.rng = random.Random(5)
        list(loader)
    assert orders[0] == orders[1] and sorted({*seen}) == sorted({*orders[0]})


@pytest.mark.parametrize('crop', ['clips', 'windows', 'shifted'])
def test_the_same_clips_wherever_they_lie(extended, crop):
    "Batches from the store, read ahead and resident are the same; a window stays in its recording"
    options, data = extended(crop=crop)
    def clips(): return ClipData(data.store, data.learnt, data.names, data.devices, crop=crop)
    every = np.arange(len(data.learnt))
    batches = []
    for place in (clips(), clips().stream(torch.device('cpu')), clips().to(torch.device('cpu'))):
        torch.manual_seed(0)
        batches.append(place.batch(every))
    for other in batches[1:]: assert all(torch.equal(a, b) for a, b in zip(batches[0], other))
    assert batches[0][0][-6:].std() > .05                  # their sound is noise


def test_mels_of_extra_are_cached(extended):
    "`cache=True` trains on the same mels as without"
    options, data = extended(dict(weight=1), cache=True, steps=['resample', 'mel', 'log'])
    learn, fit = create_training(data, options)
    with learn.no_bar(): quietly(fit)
    assert learn.dls.train_ds.cache.done[-6:].all()


def test_stacked_seeds_draw_as_alone(extended):
    "Several seeds at once see the clips that each of them would see alone"
    def training(seed, seen):
        options, data = extended(seed=seed)
        learn, fit = create_training(data, options)
        batch = learn.dls.train_ds.batch
        learn.dls.train_ds.batch = lambda idx: seen.append(list(idx)) or batch(idx)
        return learn, fit
    alone, together = ([], []), ([], [])
    for seed in 0, 1:
        learn, fit = training(seed, alone[seed])
        with learn.no_bar(): quietly(fit)
    quietly(train_stacked, [lambda seed=seed: training(seed, together[seed]) for seed in (0, 1)], 'cpu')
    assert alone[0] != alone[1] and alone == together


def test_a_copy_adds_nothing(short_test, project, tmp_path):
    "The corpus itself, and its sounds under other names, are left out where the run is judged or has them already"
    corpus = load_corpus(short_test)
    lists = [rows[rows.scene.isin(list(ROADS))] for rows in (read_split(corpus, 100), read_test(corpus))]
    names = [name for rows in lists for name in rows.groupby('scene').filename.first()]
    sounds = {f'{name.split("/")[1].split("-")[0]}-nowhere-{i}-0-q': np.zeros(9) for i, name in enumerate(names)}
    copy = write_corpus(tmp_path/'copy', sounds)
    for name, new in zip(names, sounds): shutil.copy(short_test/name, copy/f'audio/{new}.wav')
    options = TrainingOptions(**SMALL, data_dir=str(short_test), classes=ROADS,
                              extra=[dict(data=str(copy), classes=ROADS)])
    with pytest.raises(InputError, match='4 with the samples of clips.*2 that the training list has already'):
        quietly(read_training_data, options)
    with pytest.raises(InputError, match='from places of the validation or test list'):
        quietly(read_training_data, TrainingOptions(**SMALL, data_dir=str(short_test), extra=[str(short_test)]))


@pytest.mark.parametrize('wrong,says', [
    (dict(extra=[dict(data='x', wieght=1)]), 'did you mean weight'),
    (dict(extra=[3]), '3 is no corpus'),
    (dict(extra=['synthetic'], target='device'), 'is not known to the run'),
    (dict(extra=['synthetic'], teacher='x.safetensors'), 'does not know the clips that extra adds'),
    (dict(extra=[dict(data='synthetic', weight=0)]), 'extra weight=0'),
])
def test_refused_before_anything_is_read(wrong, says, monkeypatch):
    "What cannot be is told from the parameters"
    monkeypatch.setattr('asc.experiment.checks.Distillation', lambda teacher, distill: SimpleNamespace(
        files=None, kind='files' if teacher else 'none'))
    with pytest.raises(InputError, match=says): check_training(TrainingOptions(**wrong))


def test_refused_before_it_is_packed(extended, further):
    "A class that the run has not, a weight by which nothing comes, another corpus than there is"
    for entry, says in ((dict(classes={}), 'the run has no class Bus, Park.*such as .Park: park.'),
                        (dict(classes={'Bus': 'rod', 'Park': 'park'}), 'no class rod.*such as .rod: road.'),
                        (dict(classes='tau'), 'no class bus'), (dict(weight=.01), 'none would come'),
                        (dict(data=str(further/'no')), 'no folder'),
                        (dict(data='coclscene'), 'did you mean cochlscene')):
        with pytest.raises(InputError, match=says): extended(entry)


def test_a_start_on_a_corpus_by_name(short_test, home, project, tmp_path):
    "Classes of a description, a run's over them, and a training that begins with what another corpus taught"
    describe = dict(reader='tau', folder=str(short_test), classes={'bus': 'b', 'tram': 't', 'park': 'p'}, title='two')
    (home/'data').mkdir(exist_ok=True)
    (home/'data/two.yaml').write_text(json.dumps(describe), encoding='utf-8')
    options = TrainingOptions(**SMALL | dict(epochs=1), data='two', classes={'bus': 'b', 'metro': 'm'})
    with redirect_stdout(StringIO()): first, data = train_and_save(tmp_path/'first', options)
    assert (first.scenes, data.corpus.whole.scenes[0]) == (['b', 'm'], 'airport')
    options = TrainingOptions(**SMALL, data='two', init_from=str(tmp_path/'first'))
    second, _ = create_training(quietly(read_training_data, options), options)
    body, theirs = second.model.backbone.state_dict(), first.backbone.state_dict()
    assert second.model.scenes == ['b', 'p', 't'] and second.start['classes'] == ['b', 'm']
    for words in ('Its head was for 2 classes (b, m)', 'anew for 3 classes'): assert words in second.start['remark']
    kept = [name for name in body if name not in second.start['new']]
    assert kept and second.start['new'] and all(torch.equal(body[name], theirs[name]) for name in kept)


def test_ten_seconds_and_real_sounds(extended, shared, synthetic, tmp_path):
    "Joined clips take in whole recordings of another rate and length, padded; one-second clips take in their seconds"
    sounds = shared/'data/other/source'
    if not sounds.is_dir(): pytest.skip('no real recordings here')
    describe = dict(reader='folders', folder=str(sounds), group='source', licence='CC BY-NC 3.0', sound=dict(length=5),
                    pattern=r'(?P<list>\d)-(?P<location>\d+)-[A-Z]-(?P<scene>\d+)\.flac')
    (tmp_path/'real.yaml').write_text(json.dumps(describe), encoding='utf-8')
    names = sorted(path.name for path in sounds.glob('*-42.flac'))[:3]
    pd.Series(names, name='filename').to_csv(tmp_path/'three.csv', index=False)
    entry = dict(data=str(tmp_path/'real.yaml'), train_list=str(tmp_path/'three.csv'))
    entry['classes'] = {'42': 'road', '19': 'park'}
    _, data = extended(entry)
    assert data.extra.filename.iloc[1] == f'real:{names[0]}#t=1' and len(data.extra) == 15
    wave = data.clips(data.extra).batch([1])[0][0]
    original, rate = sf.read(sounds/names[0])
    alike = Resample(rate, 44100)(torch.from_numpy(original).float())[44100:88200].clamp(-1, 1)
    assert (wave - alike).abs().max() < 1e-4 and data.facts['extra'][0]['licence'] == 'CC BY-NC 3.0'
    _, data = extended(entry, data_dir=str(synthetic), train_list='', join=10)
    assert len(data.extra) == 3 and data.store.clip_len == 441000
    tail = data.clips(data.extra).batch([0])[0][0, 5 * 44100 + 100:]
    assert not tail.any()
