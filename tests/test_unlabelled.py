"""Clips without labels: heard from anywhere but the lists that judge, labelled by a teacher, taught by consistency."""
import shutil
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch

from asc.core import InputError
from asc.data.corpus import load_corpus
from asc.data.findings import table_findings
from asc.data.splits import read_split, read_test
from asc.data.unlabelled import open_unheard, unlabelled_rows
from asc.experiment.recipe import create_training, read_training_data, train_and_save
from asc.experiment.stacked import check_stacked
from asc.teach.logits import save_teacher
from asc.teach.pseudo import pseudo_labels, read_pseudo
from asc.train.options import TrainingOptions
from asc.train.resume import Checkpoint
from asc.use.teachers import clip_list
from conftest import ROOT

pytestmark = pytest.mark.usefixtures('one_thread')
SMALL = dict(backbone_args=dict(base=8, blocks=(1, 1, 1), strides={}), epochs=2, bs=8, device='cpu')


def quietly(call, *args):
    "A call without its printed lines"
    with redirect_stdout(StringIO()): return call(*args)


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project of its own, where stores go"
    (tmp_path/'asc').mkdir()
    (tmp_path/'settings.ini').touch()
    (tmp_path/'nbs').symlink_to(ROOT/'nbs')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def corpus(short_test): return load_corpus(short_test)


@pytest.fixture
def options(short_test, project, corpus):
    "options(**more) of a run on every fifth training clip, the others of its list heard without labels"
    read_split(corpus, 100)[::5].filename.to_csv(project/'mine.csv', index=False)
    basis = dict(SMALL, data_dir=str(short_test), train_list=str(project/'mine.csv'), valid=0., unlabelled=['same'])
    return lambda **more: TrainingOptions(**(basis | more))


@pytest.fixture
def teacher(corpus, project):
    "The path of a file that knows the truth of four clips in five of the training list, and is sure of it"
    rows = read_split(corpus, 100)
    truth = torch.tensor([corpus.scenes.index(scene) for scene in rows.scene])
    noise = torch.rand(len(rows), len(corpus.scenes), generator=torch.Generator().manual_seed(0))
    logits = 12 * torch.nn.functional.one_hot(truth, len(corpus.scenes)) + noise
    logits[::7] = noise[::7]
    return str(save_teacher(project/'t.safetensors', rows.filename, logits, corpus.scenes, corpus=corpus.name))


def history(data, options, cbs=(), epochs=None):
    "Train, and the weights and the history"
    learn, train = create_training(data, options, cbs=cbs)
    with redirect_stdout(StringIO()), learn.no_bar(): train()
    return learn, pd.DataFrame(learn.epoch_log.history)


def test_what_judges_is_never_heard(options, corpus, teacher):
    "Of the same corpus, and of a copy by path: no clip of the test or validation list, none of the training list"
    tested = set(read_test(corpus).filename)
    for entry in ('same', str(corpus.dir)):
        data = quietly(read_training_data, options(unlabelled=[entry], pseudo=teacher, valid=.3))
        names = {name.rpartition(':')[2] for name in data.heard.filename}
        assert names and not names & tested and not names & {*data.train.filename, *data.valid.filename}
        assert not set(data.heard.filename[data.heard.location.isin(data.valid.location)])
        assert data.heard.scene.isna().all()


def test_pseudo_labels_join_the_training_list(options, corpus, teacher):
    "Sure clips only, as many of each class, with the labels of the teacher; in the record and the fingerprint"
    data = quietly(read_training_data, options(pseudo=teacher))
    assert set(data.pseudo.rows.filename) <= set(data.heard.filename) and data.pseudo.table.taken.nunique() == 1
    assert (data.pseudo.rows.scene == data.pseudo.rows.truth).all() and (data.pseudo.table['right %'] == 100).all()
    learn, _ = create_training(data, options(pseudo=teacher))
    clips = learn.dls.train_ds
    assert len(clips) == len(data.train) + len(data.pseudo) == len(data.epoch)
    assert [corpus.scenes[k] for k in clips.y[-len(data.pseudo):]] == data.pseudo.rows.scene.tolist()
    assert data.facts['pseudo']['labels'] and data.facts['unlabelled'][0]['clips'] == len(data.heard)


def test_soft_pseudo_labels_are_probabilities(options, teacher):
    "Trained on as they are; what has a label keeps it whole"
    how = dict(teacher=teacher, soft=True, threshold=0., balance=False)
    data = quietly(read_training_data, options(pseudo=how))
    assert len(data.pseudo) == len(data.heard)
    learn, _ = create_training(data, options(pseudo=how))
    y = learn.dls.train_ds.y
    assert torch.allclose(y.sum(1), torch.ones(len(y))) and 0 < (y.max(1).values < .5).sum() < len(data.heard)
    _, table = history(data, options(pseudo=how))
    assert np.isfinite(table.train_loss).all()


def test_pseudo_labels_with_a_teachers_file(options, teacher, project, corpus):
    "The file of the distillation answers for them too, and is refused where it does not know one"
    data = quietly(read_training_data, options(pseudo=teacher, teacher=teacher))
    learn, _ = create_training(data, options(pseudo=teacher, teacher=teacher))
    assert learn.dls.train_ds.logits.shape[0] == len(data.learnt)
    rows = read_split(corpus, 100)[::5]
    truth = torch.tensor([corpus.scenes.index(scene) for scene in rows.scene])
    logits = 9 * torch.nn.functional.one_hot(truth, len(corpus.scenes)) + torch.rand(len(rows), len(corpus.scenes))
    part = save_teacher(project/'part.safetensors', rows.filename, logits, corpus.scenes)
    learnt = dict(pseudo=teacher, teacher=str(part))
    with pytest.raises(InputError, match='has no logits for'): quietly(
        lambda: create_training(read_training_data(options(**learnt)), options(**learnt)))


def test_a_run_labels_as_its_file_does(options, project, corpus):
    "A finished run as teacher; one that was trained on clips of the test list, of any share of it, is refused"
    quietly(train_and_save, project/'run', options(unlabelled=[], epochs=1))
    how = dict(teacher=str(project/'run'), threshold=0., balance=False, most=3)
    data = quietly(read_training_data, options(pseudo=how))
    assert 0 < len(data.pseudo) and data.pseudo.table.taken.max() <= 3
    pd.concat([read_test(corpus)[1::2], data.train[-1:]]).filename.to_csv(project/'turned.csv', index=False)
    others = read_split(corpus, 100)
    others[~others.location.isin(data.train.location[-1:])].filename.to_csv(project/'rest.csv', index=False)
    turned = dict(train_list=str(project/'rest.csv'), test_list=str(project/'turned.csv'), unlabelled=[])
    for door in (dict(init_from=str(project/'run')), dict(teacher=str(project/'run')),
                 dict(pseudo=how, unlabelled=['same'])):
        with pytest.raises(InputError, match=rf'{next(iter(door))}: .*/run has learnt from 1 of the \d+ clips'):
            quietly(read_training_data, options(**(turned | door)))


def test_refused_teachers(options, corpus, project, teacher):
    "Of other classes, of another corpus, without a clip, unsure of all"
    names = read_split(corpus, 100).filename
    def file(name, clips, scenes, **facts):
        logits = torch.zeros(len(clips), len(scenes))
        return str(save_teacher(project/name, clips, logits, scenes, **facts))
    wrong = {
        'has other classes': file('a.safetensors', names, ['x', 'y']),
        'has logits of elsewhere': file('b.safetensors', names, corpus.scenes, corpus='elsewhere'),
        'has no logits for': file('c.safetensors', names[:5], corpus.scenes),
        'lower threshold': file('d.safetensors', names, corpus.scenes),
    }
    for words, path in wrong.items():
        with pytest.raises(InputError, match=words): quietly(read_training_data, options(pseudo=path))


@pytest.mark.parametrize('how', ['self', dict(teacher='mean', threshold=0., decay=.5), 'live'])
def test_consistency_resumes_bit_for_bit(options, tmp_path, how):
    "Two epochs in one go, and one after the other from the checkpoint; as many steps as without; columns"
    chosen = options(consistency=how, epochs=3)
    if how == 'live':
        quietly(train_and_save, tmp_path/'teacher', options(epochs=1, unlabelled=[], seed=5))
        chosen = options(consistency=how, epochs=3, teacher=str(tmp_path/'teacher'))
    data = quietly(read_training_data, chosen)
    whole, table = history(data, chosen)
    assert {'consistency', 'passing'} <= set(table) and (table.passing.iloc[-1] == 1 or how == 'self')

    class Killed(Exception): pass

    class Kill(Checkpoint):
        def save(self):
            super().save()
            if self.epoch == 0: raise Killed('after an epoch')

    folder = tmp_path/'run'
    folder.mkdir()
    with pytest.raises(Killed): history(data, chosen, [Kill(folder)])
    resumed, _ = history(data, chosen, [Checkpoint(folder, resume=True)])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.dls.train.n == len(data.train)


def test_a_live_teacher_hears_clips_without_labels(options, tmp_path):
    "Two that answer alike: the loss is zero where the student is the teacher, and the student comes nearer to another"
    first = options(epochs=1, unlabelled=[], seed=5)
    quietly(train_and_save, tmp_path/'teacher', first)
    how = dict(teacher=[str(tmp_path/'teacher')]*2, distill=dict(temperature=1., hard_weight=0.))
    chosen = options(consistency=dict(teacher='live', ramp=0.), epochs=4, lr=5e-3, **how)
    learn, table = history(quietly(read_training_data, chosen), chosen)
    assert table.consistency.iloc[-1] < .8 * table.consistency.iloc[0] and table.passing.iloc[-1] == 1
    still = options(consistency='live', epochs=1, lr=1e-9, pipeline='none', init_from=str(tmp_path/'teacher'), **how)
    learn, table = history(quietly(read_training_data, still), still)
    assert table.consistency.iloc[0] < .1 * np.log(10)          # batch norms in training, and nothing else, differ


@pytest.mark.parametrize('more', [dict(pipeline='easy_tfsepnet', frontend='cp512'), dict(accumulate=2),
                                  dict(precision='bf16')])
def test_consistency_goes_with(options, more):
    "MixUp and Freq-MixStyle, accumulated steps, sixteen bits: it changes the weights, and all stays finite"
    chosen = options(consistency=dict(threshold=0.), epochs=1, **more)
    data = quietly(read_training_data, chosen)
    learn, table = history(data, chosen)
    alone = options(unlabelled=[], epochs=1, **more)
    bare, _ = history(quietly(read_training_data, alone), alone)
    assert np.isfinite(table.consistency).all()
    assert any(not torch.equal(a, b) for a, b in zip(learn.model.parameters(), bare.model.parameters()))


def blobs(seed=0, far=1.6, dims=20):
    "Two blobs: four points with labels, 600 without, 2,000 to test"
    rng = np.random.default_rng(seed)
    def draw(n):
        y = np.arange(n) % 2
        return torch.tensor(rng.normal(0, 1, (n, dims)) + far * (2*y[:, None] - 1) / np.sqrt(dims) * 1.5), y
    return draw(4), draw(600), draw(2000)


def fitted(x, y):
    "A logistic regression"
    net = torch.nn.Linear(x.shape[1], 2).double()
    torch.nn.init.zeros_(net.weight), torch.nn.init.zeros_(net.bias)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=50)
    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), torch.as_tensor(y)) + .01 * net.weight.square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    return net


def test_pseudo_labels_help_where_there_are_blobs():
    "In each of five drawings three rounds of pseudo-labels beat the labels alone, on average by 4.4 points"
    gained = []
    for seed in range(5):
        (x, y), (far, truth), (seen, wanted) = blobs(seed)
        net = fitted(x, y)
        alone = (net(seen).argmax(1).numpy() == wanted).mean()
        rows = pd.DataFrame(dict(filename=[str(k) for k in range(600)], truth=None, weight=1.))
        for _ in range(3):
            made = pseudo_labels(rows, net(far).detach(), ['0', '1'], read_pseudo(dict(teacher='x', threshold=.7)))
            more = far[made.rows.filename.astype(int).tolist()]
            net = fitted(torch.cat([x, more]), np.concatenate([y, made.rows.scene.astype(int)]))
        gained.append((net(seen).argmax(1).numpy() == wanted).mean() - alone)
    assert min(gained) > 0 and np.mean(gained) > .03


@pytest.fixture
def partly(short_test, project):
    "blank(which) -> a corpus in TAU's layout, some of its labels empty"
    folder = project/'partly'
    shutil.copytree(short_test, folder)
    table = pd.read_csv(folder/'meta.csv', sep='\t')
    def blank(which):
        table.assign(scene_label=table.scene_label.mask(which(table))).to_csv(folder/'meta.csv', sep='\t', index=False)
        return folder
    return blank


def test_a_corpus_may_lack_labels(partly, options, corpus):
    "Of some clips: the others are trained on, and it is said; of all: refused, naming the door there is"
    listed = {*read_split(corpus, 100).filename, *read_test(corpus).filename}
    assert len(listed) < len(corpus.meta)
    folder = partly(lambda table: ~table.filename.isin(listed))
    data = quietly(read_training_data, options(data_dir=str(folder), unlabelled=[]))
    bare = len(corpus.meta) - len(listed)
    assert data.train.scene.notna().all() and f'{bare} clips without a label' in ' '.join(data.said)
    notes = [row for row in table_findings(data.corpus) if row[1] == 'clips without a label']
    assert [row[2] for row in notes] == [bare]
    assert set(unlabelled_rows(data.corpus, 100).filename) == set(corpus.meta.filename) - listed
    folder = partly(lambda table: table.filename != '')
    with pytest.raises(InputError, match='hear this one without labels: unlabelled'):
        quietly(read_training_data, options(data_dir=str(folder), unlabelled=[]))


def test_logits_of_clips_without_labels(corpus):
    "What `clips` means, and that nothing is left where all have one"
    rest = clip_list(corpus, 'unlabelled', 25, .1)
    assert 0 < len(rest) and not set(rest.filename) & {*read_split(corpus, 25).filename, *read_test(corpus).filename}
    assert len(clip_list(corpus, 'unlabelled', 100, .1, names=['x', 'y'])) == len(corpus.meta)
    with pytest.raises(InputError, match='has a label and is in the training list'):
        clip_list(corpus, 'unlabelled', 100, .1)


def test_stacked_trainings_refuse_consistency(options):
    "By name; pseudo-labels, which are data, are none of its business"
    with pytest.raises(InputError, match='consistency'):
        check_stacked(**options(consistency='self').as_dict())


def test_any_folder_is_heard(tmp_path):
    "Sounds alone, a table without labels, one with empty ones"
    for k in range(3): sf.write(tmp_path/f'{k}.wav', np.zeros(800), 8000, 'PCM_16')
    entry = dict(data=str(tmp_path), classes={})
    assert len(open_unheard(entry).meta) == 3
    for table in ('filename\n{}', 'filename\tscene_label\tidentifier\tsource_label\n{}'):
        empty = '' if table.count('\t') == 0 else '\t\t\t'
        (tmp_path/'meta.csv').write_text(table.format(''.join(f'{k}.wav{empty}\n' for k in range(3))))
        opened = open_unheard(entry)
        assert len(opened.meta) == len(unlabelled_rows(opened, 100)) == 3
    (tmp_path/'meta.csv').write_text('nothing')
    with pytest.raises(InputError, match='meta.csv'): open_unheard(entry)
