"""The main job as a user starts it: papermill from a terminal, a pipe and a script, the run folder it leaves, and what it refuses."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from conftest import ROOT

PAPERMILL = [str(Path(sys.executable).with_name('papermill')), 'nbs/train.ipynb']
QUICK = ['-p', 'epochs', '1', '-p', 'bs', '32']


def papermill(*args, stdin=subprocess.DEVNULL, cwd=ROOT, argv=PAPERMILL, **env):
    env = dict(os.environ, OMP_NUM_THREADS='1', **env)
    return subprocess.run(
        [*argv, *map(str, args)], cwd=cwd, env=env, stdin=stdin, capture_output=True,
        text=True, timeout=300,
    )


def train(out, corpus, *args, **kw):
    "One short run into `out`"
    return papermill('-p', 'data_dir', corpus, '-p', 'out', out, *QUICK, *args, **kw)


@pytest.fixture(scope='module')
def done(tmp_path_factory, synthetic):
    "A finished run on a small synthetic corpus, started with a pipe as standard input"
    out = tmp_path_factory.mktemp('runs')/'one'
    r = train(out, synthetic, stdin=subprocess.PIPE)
    assert r.returncode == 0, r.stderr[-3000:]
    return out, r


def test_run_folder(done):
    "Everything the issue names is there, and is consistent"
    out, r = done
    have = {p.name for p in out.iterdir()}
    assert have >= {
        'train.ipynb', 'params.json', 'metrics.json', 'history.csv', 'predictions.csv',
        'model.safetensors', 'model.json', 'class_wise.csv', 'class_wise.md',
        'device_wise.csv', 'city_wise.csv', 'summary.csv', 'reliability.png', 'complexity.csv',
        'split_by_scene.csv', 'confusion.csv', 'confusion.png', 'class_device.png',
        'history.png', 'clips.png',
    }
    assert not [n for n in have if n.endswith('.part')]
    metrics, params = (json.loads((out/f'{n}.json').read_text()) for n in ('metrics', 'params'))
    assert {
        'macro_accuracy', 'accuracy', 'log_loss', 'class_accuracy', 'device_accuracy',
        'group_accuracy', 'params', 'macs',
    } <= set(metrics)
    assert (metrics['params'], metrics['macs']) == (61148, 29419156)
    lines = metrics['lines']
    assert list(lines) == ['clips', 'half precision', 'fitted temperature', 'recordings (vote)']
    assert lines['recordings (vote)']['n'] == 90
    assert lines['clips']['macro_accuracy'] == metrics['macro_accuracy'] == lines['fitted temperature']['macro_accuracy']
    assert metrics['temperature'] > 0
    assert not (out/'tensorboard').exists()
    assert not (out/'wandb').exists()
    # asked == ran
    assert params['parameters']['epochs'] == 1
    assert params['parameters']['out'] == str(out)
    assert params['versions']['torch']
    assert params['data']['lists']['test']['clips'] == 900
    assert params['data']['synthetic']
    preds = pd.read_csv(out/'predictions.csv')
    assert list(preds.columns[:4]) == ['filename', 'scene_label', 'device', 'city']
    assert len(preds) == 900
    p = preds.iloc[:, 4:]
    assert np.allclose(p.sum(axis=1), 1, atol=1e-6)
    assert (p.idxmax(axis=1) == preds.scene_label).mean() == pytest.approx(metrics['accuracy'])
    assert len(pd.read_csv(out/'history.csv')) == 1


def test_executed_notebook_is_a_report(done):
    "The executed notebook has the injected parameters, tables, pictures and sounds, and says synthetic"
    out, _ = done
    nb = json.loads((out/'train.ipynb').read_text())
    assert [c['metadata'].get('tags') for c in nb['cells'] if c['metadata'].get('tags')] == [
        ['parameters'], ['injected-parameters']
    ]
    kinds = [k for c in nb['cells'] for o in c.get('outputs', []) for k in o.get('data', {})]
    text = json.dumps(nb)
    assert kinds.count('image/png') >= 4
    assert text.count('<audio') >= 3
    assert 'synthetic' in text
    assert '61,148' in text and '29,419,156' in text


def test_progress_reaches_the_terminal(done):
    "A line per epoch and the progress bar are on standard error"
    _, r = done
    assert 'epoch   1/1' in r.stderr and 'Executing' in r.stderr
    assert 'Unable to parse' not in r.stderr and 'unknown parameter' not in r.stderr


def test_one_seed_one_result(done, tmp_path, synthetic):
    "The same command gives the same metrics.json to the last digit; the two-path form leaves the notebook in both places"
    out, _ = done
    r = papermill(
        tmp_path/'mine.ipynb', '-p', 'data_dir', synthetic, '-p', 'out', tmp_path/'two', *QUICK
    )
    assert r.returncode == 0, r.stderr[-3000:]
    assert (tmp_path/'two/metrics.json').read_bytes() == (out/'metrics.json').read_bytes()
    assert (tmp_path/'two/predictions.csv').read_bytes() == (out/'predictions.csv').read_bytes()
    assert (tmp_path/'mine.ipynb').is_file()
    assert (tmp_path/'two/train.ipynb').is_file()


def refused(tmp_path, *args, **kw):
    "Run, expect failure, return the one sentence"
    r = papermill(tmp_path/'executed.ipynb', '-p', 'out', tmp_path/'refused', *args, **kw)
    assert r.returncode != 0
    assert 'epoch   1/' not in r.stderr  # before any training
    assert not (tmp_path/'refused/metrics.json').exists()
    return next(l for l in r.stderr.splitlines() if l.startswith('InputError'))


@pytest.mark.parametrize('args, told', [
    (['-p', 'epoch', 5], 'unknown parameter epoch'),
    (['-p', 'subset', 30], 'subset'),
    (['-p', 'subset', 'all'], 'must be a whole number'),
    (['-p', 'backbone', 'resnet1001'], "unknown backbone 'resnet1001'"),
    (['-p', 'data_dir', 'nowhere/at/all'], 'nowhere/at/all'),
    (['-p', 'epochs', 0], 'epochs=0 must be at least 1'),
    (['-y', '{lr: 1e-3}'], 'In YAML'),
    (['-p', 'log', 'tensorbord'], "unknown log 'tensorbord'"),
    (['-p', 'nb_aug', 5, '-p', 'pipeline', 'none'], 'nb_aug=5: this pipeline has no freq_mask'),
], ids=lambda v: v if isinstance(v, str) else v[1])
def test_bad_parameters_are_refused(tmp_path, synthetic, args, told):
    if 'data_dir' not in args: args = ['-p', 'data_dir', synthetic, *args]
    assert told in refused(tmp_path, *args)


def test_a_run_is_what_create_training_trains(done, synthetic, tmp_path):
    "The history of train.ipynb is that of the learner a trial of a search gets for the same parameters, to the last digit"
    import torch
    from asc.experiment.recipe import create_training, training_options
    from asc.data.corpus import load_corpus
    from asc.data.splits import carve_valid, read_split
    from asc.data.store import pack
    params = json.loads((done[0]/'params.json').read_text())['parameters']
    threads = torch.get_num_threads()
    corpus = load_corpus(synthetic)
    parts = carve_valid(read_split(corpus, params['subset']), params['valid'])
    torch.set_num_threads(1)
    learn, fit = create_training(
        pack(corpus, tmp_path, progress=False),
        *parts,
        corpus.scenes,
        corpus.devices,
        tmp_path/'history.csv',
        **training_options(params),
    )
    with learn.no_bar(): fit()
    torch.set_num_threads(threads)
    assert (tmp_path/'history.csv').read_bytes() == (done[0]/'history.csv').read_bytes()


def test_folder_of_another_run_is_refused(done, synthetic):
    "Neither form touches a folder that holds a run"
    out, _ = done
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    r = train(out, synthetic)
    assert r.returncode != 0 and 'already holds' in r.stderr
    r = papermill(out.parent/'other.ipynb', '-p', 'data_dir', synthetic, '-p', 'out', out, *QUICK)
    assert r.returncode != 0 and 'already holds' in r.stderr
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}


def test_broken_sounds_are_all_named(tmp_path, synthetic):
    "Every broken file is named at once, before training, and no store is left that looks whole"
    import shutil
    corpus = tmp_path/'broken-synthetic'
    shutil.copytree(synthetic, corpus)
    files = sorted((corpus/'audio').iterdir())[::90][:5]
    x = np.zeros(44100)
    files[0].unlink()
    files[1].write_bytes(b'')
    files[2].write_bytes(files[2].read_bytes()[:5000])
    sf.write(files[3], np.stack([x, x], 1), 44100, 'PCM_24')
    sf.write(files[4], x, 48000, 'PCM_24')
    r = papermill(
        tmp_path/'executed.ipynb', '-p', 'data_dir', corpus, '-p', 'out', tmp_path/'refused',
        *QUICK,
    )
    assert r.returncode != 0, r.stderr[-3000:]
    assert all(f.name in r.stderr for f in files), r.stderr[-3000:]
    assert not (tmp_path/'refused/metrics.json').exists()


def test_full_disk_leaves_nothing_half_written(tmp_path):
    "A write that fails half-way (here: a file-size limit) leaves the old file whole and no partial one"
    code = (
        'import resource, signal, sys; from asc.core import write_text; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n' 'resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_text(sys.argv[1], "x" * 5000)'
    )
    (tmp_path/'metrics.json').write_text('old')
    r = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path/'metrics.json')],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert r.returncode != 0 and 'Nothing half-written was left' in r.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['metrics.json']
    assert (tmp_path/'metrics.json').read_text() == 'old'


def test_readme_script_runs(synthetic, tmp_path):
    "The script of the README, word for word, on the small corpus"
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    script = text.split('```python\n', 1)[1].split('```', 1)[0]
    assert 10 <= len(script.strip().splitlines()) <= 20
    script = script.replace(
        "asc.find_corpus('synthetic')", f'asc.find_corpus(data_dir={str(synthetic)!r})'
    )
    r = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=tmp_path,
                       env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    assert r.returncode == 0, r.stderr[-3000:]


def test_benchmark_runs(synthetic, tmp_path):
    "The benchmark notebook times every stage and leaves its tables (the times themselves are nobody's test)"
    r = papermill(
        tmp_path/'executed.ipynb',
        '-p',
        'data_dir',
        synthetic,
        '-p',
        'repeats',
        1,
        '-p',
        'threads',
        '[1]',
        '-p',
        'bs',
        4,
        '-p',
        'clips',
        4,
        '-p',
        'networks',
        "['cnn3']",
        '-p',
        'rows',
        250,
        '-p',
        'out',
        tmp_path/'bench',
        '-p',
        'stages',
        '[store, frontends, networks, epoch, int8, prediction, profile, accelerator, memory]',
        '-p',
        'accelerator',
        'cpu',
        argv=[PAPERMILL[0], 'nbs/benchmark.ipynb'],
    )
    assert r.returncode == 0, r.stderr[-3000:]
    table = pd.read_csv(tmp_path/'bench/benchmark.csv')
    assert (table[['cpu_ms', 'wall_ms', 'cpu_ratio', 'wall_ratio']] > 0).all(axis=None)
    assert (table.threads == 1).all()
    # the Learner around nothing has none
    assert table.floor_ms.notna().sum() == len(table) - 1
    for stage in (
        'clips', 'dcase24', 'cnn3, training', 'epoch of', 'Learner', 'waveform', 'asc.predict'
    ):
        assert table.stage.str.contains(stage).any(), stage
    told = json.loads((tmp_path/'bench/metrics.json').read_text())
    assert told['packing_clips_per_s'] > 0
    assert told['memory']['packing']['clips'] == 250
    assert 1e8 < told['memory']['start']['peak'] <= told['memory']['prediction']['peak']
    rates = pd.read_csv(tmp_path/'bench/accelerator.csv', index_col=0)
    assert list(rates.index) == ['float32', 'bf16', '3 seeds, stacked']
    assert (rates > 0).all(axis=None)
    assert rates['against one seed'].float32 == 1
    assert list(pd.read_csv(tmp_path/'bench/networks.csv', index_col=0).index) == ['cnn3']
    assert (tmp_path/'bench/profile_published.csv').is_file()


def test_zoo_runs(synthetic, tmp_path):
    "The zoo notebook counts what was published and loads what it saved"
    pytest.importorskip('timm')
    (tmp_path/'clips').mkdir()
    for f in sorted((synthetic/'audio').iterdir())[:900:450]:
        (tmp_path/'clips'/f.name).write_bytes(f.read_bytes())
    argv = [PAPERMILL[0], 'nbs/zoo.ipynb']
    r = papermill(
        tmp_path/'executed.ipynb', '-p', 'clips', tmp_path/'clips', '-p', 'out',
        tmp_path/'zoo', argv=argv,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    found = json.loads((tmp_path/'zoo/metrics.json').read_text())
    assert (found['networks'], found['differing'], found['clips'], found['random_weights']) == (
        21, 0, 2, True
    )
    assert all(v['grid'] == v['chirp'] == 0 for v in found['golden'].values())
    assert len(found['golden']) == 3
    assert 'Random weights' in (tmp_path/'zoo/zoo.ipynb').read_text()


def test_report_runs(done, tmp_path):
    "The report notebook makes the tables of the paper from run folders, and says synthetic"
    out, _ = done
    r = papermill(
        tmp_path/'executed.ipynb',
        '-y',
        f'{{runs: ["{out}"], pair: ["{out}", "{out}"]}}',
        '-p',
        'out',
        tmp_path/'report',
        argv=[PAPERMILL[0], 'nbs/report.ipynb'],
    )
    assert r.returncode == 0, r.stderr[-3000:]
    tables = {p.name.split('-')[0]: p.read_text() for p in (tmp_path/'report').glob('*.md')}
    macro = 100 * json.loads((out/'metrics.json').read_text())['macro_accuracy']
    assert {'summary', 'class', 'device', 'group', 'city', 'lines', 'intervals'} <= set(tables)
    assert f'{macro:.2f}' in tables['summary']
    assert 'published' not in tables['class']
    pair = pd.read_csv(tmp_path/'report/pair.csv', index_col=0)
    # one seed
    assert (pair.difference.dropna() == 0).all()
    assert pair.detectable.isna().all()
    assert {'macro accuracy', 'log loss', 'device s6'} <= set(pair.index)
    assert 'synthetic: says nothing about TAU' in (tmp_path/'report/report.ipynb').read_text()


def test_a_killed_run_goes_on(synthetic, tmp_path):
    "kill -9 in the middle of training, then `-p resume True`: the same metrics to the last digit; a finished run is not resumed"
    import signal
    import time
    args = ['-p', 'data_dir', synthetic, '-p', 'epochs', 4, '-p', 'bs', 32, '-p', 'ema', 0.9]
    assert papermill(tmp_path/'a.ipynb', *args, '-p', 'out', tmp_path/'whole').returncode == 0
    p = subprocess.Popen(
        [*PAPERMILL, str(tmp_path/'b.ipynb'), *map(str, args), '-p', 'out', str(tmp_path/'killed')],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        start_new_session=True,
    )
    end = time.time() + 120
    while not (tmp_path/'killed/checkpoint.pt').exists() and time.time() < end:
        time.sleep(.05)
    kernels = [
        int(q.name)
        for q in Path('/proc').iterdir()
        if q.name.isdigit() and str(p.pid) == _parent(q)
    ]
    for pid in (p.pid, *kernels): os.kill(pid, signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'killed/metrics.json').exists()
    r = papermill(
        tmp_path/'c.ipynb', *args, '-p', 'lr', 0.001, '-p', 'resume', 'True', '-p', 'out',
        tmp_path/'killed',
    )
    assert r.returncode != 0 and 'lr was 0.005, is 0.001' in r.stderr
    r = papermill(*args, '-p', 'resume', 'True', '-p', 'out', tmp_path/'killed')
    assert r.returncode == 0, r.stderr[-2000:]
    assert 'continuing after epoch' in r.stderr, r.stderr[-2000:]
    for name in ('metrics.json', 'predictions.csv', 'history.csv'):
        assert (tmp_path/'killed'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()
    r = papermill(*args, '-p', 'resume', 'True', '-p', 'out', tmp_path/'killed')
    assert r.returncode != 0 and 'nothing to resume' in r.stderr


def _parent(proc):
    "Parent's process number of a folder of /proc"
    try:
        return (proc/'stat').read_text().rsplit(')', 1)[1].split()[1]
    except OSError:
        return ''
