"""The main job as a user starts it: from a terminal, a pipe and a script; the folder it leaves, and what it refuses."""
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from asc.train.options import TrainingOptions
from asc.data.splits import carve_valid, read_split
from asc.experiment.recipe import TrainingData, create_training
import launch

QUICK = dict(epochs=1, bs=32)


@pytest.fixture
def terminal(finished):
    "What the terminal showed of the finished run"
    return (finished.parent/'terminal.txt').read_text()


def read_json(path):
    "The content of a JSON file"
    return json.loads(path.read_text())


def test_run_folder(finished):
    "Every file a user is promised is there, and they agree with each other"
    names = {p.name for p in finished.iterdir()}
    assert names >= {
        'train.ipynb', 'params.json', 'metrics.json', 'history.csv', 'predictions.csv',
        'model.safetensors', 'model.json', 'class_wise.csv', 'class_wise.md',
        'device_wise.csv', 'city_wise.csv', 'summary.csv', 'reliability.png', 'complexity.csv',
        'split_by_scene.csv', 'confusion.csv', 'confusion.png', 'class_device.png',
        'history.png', 'clips.png',
    }
    assert not [name for name in names if name.endswith('.part')]
    assert not (finished/'tensorboard').exists()
    assert not (finished/'wandb').exists()
    assert len(pd.read_csv(finished/'history.csv')) == 1


def test_metrics_of_a_run(finished):
    "Scores, the cost of the network, and a line for each way of scoring"
    metrics = read_json(finished/'metrics.json')
    assert set(metrics) >= {
        'macro_accuracy', 'accuracy', 'log_loss', 'class_accuracy', 'device_accuracy',
        'group_accuracy', 'params', 'macs',
    }
    assert (metrics['params'], metrics['macs']) == (61148, 29419156)
    assert metrics['temperature'] > 0
    lines = metrics['lines']
    assert list(lines) == ['clips', 'half precision', 'fitted temperature', 'recordings (vote)']
    assert lines['recordings (vote)']['n'] == 90
    assert lines['clips']['macro_accuracy'] == metrics['macro_accuracy']
    assert lines['fitted temperature']['macro_accuracy'] == metrics['macro_accuracy']


def test_parameters_of_a_run(finished):
    "What was asked for is what ran, on which data and with which versions"
    record = read_json(finished/'params.json')
    assert record['parameters']['epochs'] == 1
    assert record['parameters']['out'] == str(finished)
    assert record['versions']['torch']
    assert record['data']['lists']['test']['clips'] == 900
    assert record['data']['synthetic']


def test_predictions_of_a_run(finished):
    "A probability for each scene and test clip, which give the accuracy in metrics.json"
    table = pd.read_csv(finished/'predictions.csv')
    assert list(table.columns[:4]) == ['filename', 'scene_label', 'device', 'city']
    assert len(table) == 900
    probabilities = table.iloc[:, 4:]
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    right = probabilities.idxmax(axis=1) == table.scene_label
    assert right.mean() == pytest.approx(read_json(finished/'metrics.json')['accuracy'])


def test_executed_notebook_is_a_report(finished):
    "The executed notebook has the injected parameters, tables, pictures and sounds, and says synthetic"
    nb = read_json(finished/'train.ipynb')
    tags = [c['metadata']['tags'] for c in nb['cells'] if c['metadata'].get('tags')]
    assert tags == [['parameters'], ['injected-parameters']]
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    kinds = [kind for o in outputs for kind in o.get('data', {})]
    text = json.dumps(nb)
    assert kinds.count('image/png') >= 4
    assert text.count('<audio') >= 3
    assert 'synthetic' in text
    assert '61,148' in text
    assert '29,419,156' in text


def test_progress_reaches_the_terminal(terminal):
    "A line per epoch and the progress bar are on standard error"
    assert 'epoch   1/1' in terminal
    assert 'Executing' in terminal
    assert 'Unable to parse' not in terminal
    assert 'unknown parameter' not in terminal


def listing(folder):
    "Every file below a folder with its content"
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('parameters, sentence', [
    (dict(epoch=5), "unknown parameter 'epoch'"),
    (dict(backbone='resnet1001'), "unknown backbone 'resnet1001'"),
    (dict(nb_aug=5, pipeline='none'), 'nb_aug=5: this pipeline has no freq_mask'),
], ids=['before the kernel', 'by the first cells', 'by the last check'])
def test_what_is_refused_leaves_nothing(papermill, tmp_path, synthetic, parameters, sentence):
    "Before any training, in one sentence; no folder and no notebook is left, wherever the notebook was to go"
    options = dict(data_dir=synthetic, out=tmp_path/'a/refused') | parameters
    elsewhere = dict(executed=tmp_path/'b/executed.ipynb') if 'nb_aug' in parameters else {}
    result = papermill('train', **elsewhere, **options)
    assert result.returncode != 0
    assert 'epoch   1/' not in result.stderr
    lines = result.stderr.splitlines()
    assert sentence in next(line for line in lines if line.startswith('InputError'))
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_an_older_notebook_alone(papermill, finished, tmp_path):
    "Neither the notebook of a finished run nor one that lies in the folder is written over by a run that is refused"
    shutil.copytree(finished, tmp_path/'good')
    (tmp_path/'mine').mkdir()
    shutil.copy(finished/'train.ipynb', tmp_path/'mine')
    before = listing(tmp_path)
    for words, sentence in (
        (dict(executed=tmp_path/'good/train.ipynb', out=tmp_path/'new'), 'notebook of a finished run'),
        (dict(executed=tmp_path/'good/train.ipynb', out=tmp_path/'good'), 'notebook of a finished run'),
        (dict(out=tmp_path/'good', resume=True), 'nothing to resume'),
        (dict(out=tmp_path/'mine', backbone='resnet1001'), 'unknown backbone'),
    ):
        result = papermill('train', **words)
        assert result.returncode != 0
        assert sentence in result.stderr.splitlines()[-1]
        assert listing(tmp_path) == before


def test_papermill_in_a_script_is_as_strict(tmp_path):
    "`papermill.execute_notebook` refuses the same names and values before it writes anything"
    code = """
import sys, papermill
papermill.execute_notebook('nbs/train.ipynb', sys.argv[1], parameters={'_x': 1})
"""
    result = launch.run(sys.executable, '-c', code, tmp_path/'executed.ipynb')
    assert result.returncode != 0
    assert "InputError: '_x' cannot be the name of a parameter" in result.stderr
    assert not list(tmp_path.iterdir())


def test_numbers_arrive_as_they_were_written(papermill, tmp_path):
    "What papermill hands on is what was written: 1e-3 is a number, a date is text, 010 is refused"
    launch.check(papermill('train', '--prepare-only', '-y', '{lr: 1e-3, data_dir: 2026-01-01}',
        executed=tmp_path/'x.ipynb'))
    cells = read_json(tmp_path/'x.ipynb')['cells']
    injected = next(c['source'] for c in cells if 'injected-parameters' in c['metadata'].get('tags', []))
    assert [line for line in ''.join(injected).splitlines() if '=' in line] == ['lr = 0.001',
        'data_dir = "2026-01-01"']


@pytest.mark.usefixtures('one_thread')
def test_a_run_is_what_create_training_trains(finished, packed, tmp_path):
    "The history of train.ipynb is that of a trial of a search with the same parameters, to the last digit"
    corpus, store = packed
    params = read_json(finished/'params.json')['parameters']
    train, valid = carve_valid(read_split(corpus, params['subset']), params['valid'])
    data = TrainingData(store, train, valid, corpus.scenes, corpus.devices)
    learn, fit = create_training(data, TrainingOptions.of(params), tmp_path/'history.csv')
    with learn.no_bar(): fit()
    assert (tmp_path/'history.csv').read_bytes() == (finished/'history.csv').read_bytes()


@pytest.mark.parametrize('executed', [None, 'other.ipynb'], ids=['one path', 'two paths'])
def test_folder_of_another_run_is_refused(finished, papermill, synthetic, tmp_path, executed):
    "Neither form touches a folder that holds a run"
    before = {p: p.stat().st_mtime_ns for p in finished.iterdir()}
    executed = executed and tmp_path/executed
    result = papermill('train', executed=executed, data_dir=synthetic, out=finished, **QUICK)
    assert result.returncode != 0
    assert 'already holds' in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in finished.iterdir()}


def test_broken_sounds_are_all_named(papermill, tmp_path, synthetic):
    "Every broken file is named at once, before training, and no store is left that looks whole"
    corpus = tmp_path/'broken-synthetic'
    shutil.copytree(synthetic, corpus)
    files = sorted((corpus/'audio').iterdir())[::90][:5]
    silence = np.zeros(44100)
    files[0].unlink()
    files[1].write_bytes(b'')
    files[2].write_bytes(files[2].read_bytes()[:5000])
    sf.write(files[3], np.stack([silence, silence], 1), 44100, 'PCM_24')
    sf.write(files[4], silence, 48000, 'PCM_24')
    options = dict(data_dir=corpus, out=tmp_path/'refused', **QUICK)
    result = papermill('train', executed=tmp_path/'executed.ipynb', **options)
    assert result.returncode != 0, result.stderr[-3000:]
    for file in files:
        assert file.name in result.stderr, result.stderr[-3000:]
    assert not (tmp_path/'refused/metrics.json').exists()


WRITE_TOO_MUCH = '''
import resource, signal, sys
from asc.core import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_text(sys.argv[1], 'x' * 5000)
'''


def test_full_disk_leaves_nothing_half_written(tmp_path):
    "A write that fails half-way (here: a file-size limit) leaves the old file whole and no partial one"
    (tmp_path/'metrics.json').write_text('old')
    result = launch.run(sys.executable, '-c', WRITE_TOO_MUCH, tmp_path/'metrics.json')
    assert result.returncode != 0
    assert 'Nothing half-written was left' in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['metrics.json']
    assert (tmp_path/'metrics.json').read_text() == 'old'


def test_benchmark_runs(papermill, synthetic, tmp_path):
    "The benchmark notebook times every stage and leaves its tables (the times themselves are nobody's test)"
    stages = '[store, frontends, networks, epoch, int8, prediction, profile, accelerator, memory]'
    options = dict(
        data_dir=synthetic, repeats=1, threads='[1]', bs=4, clips=4, networks="['cnn3']",
        rows=250, stages=stages, device='cpu', out=tmp_path/'bench',
    )
    launch.check(papermill('benchmark', executed=tmp_path/'executed.ipynb', **options))
    check_times(pd.read_csv(tmp_path/'bench/benchmark.csv'))
    check_memory(read_json(tmp_path/'bench/metrics.json'))
    check_rates(pd.read_csv(tmp_path/'bench/accelerator.csv', index_col=0))
    networks = pd.read_csv(tmp_path/'bench/networks.csv', index_col=0)
    assert list(networks.index) == ['cnn3']
    assert (tmp_path/'bench/profile_published.csv').is_file()


def check_times(table):
    "Every stage has a time, and a floor, except the Learner around nothing"
    assert (table[['cpu_ms', 'wall_ms', 'cpu_ratio', 'wall_ratio']] > 0).all(axis=None)
    assert (table.threads == 1).all()
    assert table.floor_ms.notna().sum() == len(table) - 1
    stages = 'clips', 'dcase24', 'cnn3, training', 'epoch of', 'Learner', 'waveform', 'asc.predict'
    for stage in stages:
        assert table.stage.str.contains(stage).any(), stage


def check_memory(metrics):
    "Packing, and what memory a training and a prediction take"
    assert metrics['packing_clips_per_s'] > 0
    memory = metrics['memory']
    assert memory['packing']['clips'] == 250
    assert 1e8 < memory['start']['peak'] <= memory['prediction']['peak']


def check_rates(rates):
    "Clips a second on an accelerator (here: the CPU), against those of one seed"
    assert list(rates.index) == ['float32', 'bf16', '3 seeds, stacked']
    assert (rates > 0).all(axis=None)
    assert rates['against one seed'].float32 == 1


def test_zoo_runs(papermill, synthetic, tmp_path):
    "The zoo notebook counts what was published and loads what it saved"
    pytest.importorskip('timm')
    (tmp_path/'clips').mkdir()
    for file in sorted((synthetic/'audio').iterdir())[:900:450]:
        shutil.copy(file, tmp_path/'clips')
    options = dict(clips=tmp_path/'clips', out=tmp_path/'zoo')
    launch.check(papermill('zoo', executed=tmp_path/'executed.ipynb', **options))
    metrics = read_json(tmp_path/'zoo/metrics.json')
    assert metrics['networks'] == 32
    assert metrics['differing'] == 0
    assert metrics['clips'] == 2
    assert metrics['random_weights'] is True
    assert len(metrics['golden']) == 3
    assert all(v['grid'] == v['chirp'] == 0 for v in metrics['golden'].values())
    assert 'Random weights' in (tmp_path/'zoo/zoo.ipynb').read_text()


def test_report_runs(finished, papermill, tmp_path):
    "The report notebook makes the tables of the paper from run folders, and says synthetic"
    options = dict(runs=[finished], pair=[finished, finished], out=tmp_path/'report')
    launch.check(papermill('report', executed=tmp_path/'executed.ipynb', **options))
    tables = {p.name.split('-')[0]: p.read_text() for p in (tmp_path/'report').glob('*.md')}
    macro = 100 * read_json(finished/'metrics.json')['macro_accuracy']
    assert {'summary', 'class', 'device', 'group', 'city', 'lines', 'intervals'} <= set(tables)
    assert f'{macro:.2f}' in tables['summary']
    assert 'published' not in tables['class']
    pair = pd.read_csv(tmp_path/'report/pair.csv', index_col=0)
    assert (pair.difference.dropna() == 0).all()
    # one seed detects nothing
    assert pair.detectable.isna().all()
    assert {'macro accuracy', 'log loss', 'device s6'} <= set(pair.index)
    assert 'synthetic: says nothing about TAU' in (tmp_path/'report/report.ipynb').read_text()


SEVERAL = dict(epochs=2, bs=32, ema=.9)


def start_and_kill(out, corpus, kernels):
    "Start the same run and kill papermill and its kernel as soon as there is a checkpoint"
    line = launch.command('train', data_dir=corpus, out=out, **SEVERAL)
    process = launch.start(*line, kernels=kernels)
    end = time.time() + 120
    while not (out/'checkpoint.pt').exists() and time.time() < end:
        time.sleep(.05)
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def children(pid):
    "Processes that a process has started"
    folders = [p for p in Path('/proc').iterdir() if p.name.isdigit()]
    return [int(p.name) for p in folders if parent(p) == pid]


def parent(folder):
    "Parent's process number in a folder of /proc, 0 when the process has just ended"
    try:
        return int((folder/'stat').read_text().rsplit(')', 1)[1].split()[1])
    except OSError:
        return 0


def test_a_killed_run_goes_on(papermill, kernels, short_test, tmp_path):
    """kill -9 while training, then `-p resume True`: the same numbers to the last digit; a finished run is not resumed

    Given two paths, a command leaves the notebook in both places."""
    out = tmp_path/'killed'
    start_and_kill(out, short_test, kernels)
    assert not (out/'metrics.json').exists()
    undisturbed = tmp_path/'undisturbed'
    launch.check(papermill('train', executed=tmp_path/'mine.ipynb', data_dir=short_test, out=undisturbed, **SEVERAL))
    assert (tmp_path/'mine.ipynb').is_file()
    assert (undisturbed/'train.ipynb').is_file()
    options = dict(data_dir=short_test, out=out, resume=True, **SEVERAL)
    before = listing(out)
    other = papermill('train', lr=.001, **options)
    assert other.returncode != 0
    assert 'lr was 0.005, is 0.001' in other.stderr
    assert listing(out) == before
    assert '-p resume True' in papermill('train', **options | dict(resume=False)).stderr
    resumed = launch.check(papermill('train', **options))
    assert 'continuing after epoch' in resumed.stderr, resumed.stderr[-2000:]
    for name in ('metrics.json', 'predictions.csv', 'history.csv'):
        assert (out/name).read_bytes() == (undisturbed/name).read_bytes()
    again = papermill('train', **options)
    assert again.returncode != 0
    assert 'nothing to resume' in again.stderr
