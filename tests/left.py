"""What the commands of the README and the tutorials leave in the folder they were typed in, looked at."""
import sys
from importlib.util import find_spec

import pandas as pd
import pytest

import launch
from asc.core import read_json
from asc.experiment.evaluation import model_digest
from asc.export.onnx import load_exported
from asc.load import open_model
from asc.score.metrics import read_predictions
from asc.score.runs import run_labels, usable_runs


def only(folder, pattern):
    "The one path of a pattern"
    path, = folder.glob(pattern)
    return path


def quantised(desk):
    "The table, the files with their cards, and the distances promised"
    out = desk/'runs/q'
    metrics = read_json(out/'metrics.json')
    assert list(metrics['rows']) == ['float', 'folded', 'fp16', 'PTQ', 'QAT']
    assert metrics['rows']['folded']['decisions as float %'] == 100
    assert metrics['parity']['folded.onnx']['max_probabilities'] < 1e-3
    assert metrics['parity']['ptq.onnx']['integer_layers'] > 5
    for name in ('folded', 'fp16', 'ptq', 'qat'):
        for end in ('', '-network'):
            file = out/f'{name}{end}.onnx'
            assert metrics['parity'][file.name]['decisions'] >= .97
            assert load_exported(file).precision in file.with_suffix('.md').read_text()
    assert {path.name for path in out.iterdir()} >= {
        'quantize.md', 'latency.md', 'sensitivity.md', 'stored.csv', 'predictions-qat.csv',
    }


def evaluated(desk):
    "The answers of evaluate.ipynb are those that the run itself has recorded; a report reads both"
    run, out = desk/'runs/a', only(desk, 'runs/evaluate-*')
    known, again = (read_predictions(folder/'predictions.csv') for folder in (run, out))
    assert list(known.filename) == list(again.filename)
    classes = list(known.columns[4:])
    assert (known[classes] - again[classes]).abs().max().max() < 1e-5
    assert {path.name for path in out.iterdir()} >= {
        'class_wise.csv', 'device_wise.csv', 'confusion.png', 'summary.md',
    }
    assert read_json(out/'params.json')['model']['sha256'] == model_digest(run) != ''
    records, remarks = usable_runs([run, out])
    assert not remarks
    label = 'split 100, cp_mobile_24'
    assert [words for _, words in run_labels(records)] == [label, f'{label} (evaluated)']


def distilled(desk):
    "A student alone and one taught, with the same seed, in a table of what was gained"
    out, runs = only(desk, 'runs/distill-*'), sorted(desk.glob('runs/distill/*-seed0'))
    alone, taught = (read_json(run/'metrics.json')['macro_accuracy'] for run in runs)
    table = pd.read_csv(out/'gain.csv', index_col=0)
    assert table.gain['macro accuracy'] == pytest.approx(100*(taught - alone))
    assert {'a', 's6', 'unseen', 'log loss'} <= set(table.index)
    first, second = (read_json(run/'params.json')['parameters'] for run in runs)
    assert [name for name in first if first[name] != second[name]] == ['teacher', 'out']


def has_device_models(desk):
    "Devices that trained have a part of their own, within the budget, in a small file beside the model"
    folder = desk/'runs/devices'
    gains = pd.read_csv(folder/'gains.csv', index_col=0)
    # a stranger keeps the general model
    assert gains.loc['s6'].filter(like='%').nunique() == 1
    assert gains.loc['s6', 'clips'] == 0
    assert {'general_metrics', 'macro_accuracy'} <= set(read_json(folder/'metrics.json'))
    sizes = {name: (folder/f'{name}.safetensors').stat().st_size for name in ('devices', 'model')}
    assert sizes['devices'] < sizes['model']
    budget = pd.read_csv(folder/'budget.csv', index_col=0)
    assert budget.passed.all()
    assert 'unknown' in budget.index
    assert open_model(folder).devices == ['a', 'b', 'c', 's1', 's2', 's3', 's4', 's5', 's6']


def submitted_device_models(desk):
    "The whole of an entry of 2025: answers, meta file with both results, and a package that works alone"
    out = desk/'runs/curie-2025'
    for problem in read_json(out/'params.json')['problems']:
        assert 'placeholder' in problem or 'author' in problem or 'e-mail' in problem
    meta = (out/'Curie_UP_task1_1/Curie_UP_task1_1.meta.yaml').read_text()
    assert 'general:' in meta
    assert 'device_specific:' in meta
    table = pd.read_csv(out/'devices.csv', header=[0, 1], index_col=0)
    assert {'a', 's10', 'unknown'} <= set(table.index)
    check_package(out/'Curie_UP_task1_package', desk/'site')


def check_package(package, site):
    "An entry's package can be installed, where there are pip and setuptools"
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation']
    result = launch.run(*pip, '--target', site, package)
    # to ask for the spec of pip would change which distutils this process gets
    if 'No module named pip' in result.stderr or find_spec('setuptools') is None: return
    launch.check(result)
    assert (site/'Curie_UP_task1/ckpts/Curie_UP_task1_1/devices.safetensors').is_file()


def explored(desk):
    "Pictures of the data and of the run, its hardest clips, and a map of embeddings"
    out = desk/'runs/explored'
    assert {path.name for path in out.iterdir()} >= {
        'counts.png', 'device_spectra.png', 'scenes.png', 'hardest.png', 'embeddings.png', 'hardest.csv',
        'embeddings.csv',
    }
    assert pd.read_csv(out/'hardest.csv').p_true.is_monotonic_increasing
    assert len(pd.read_csv(out/'embeddings.csv')) > 20


# the first word of a page's name -> what is looked at when it has been followed
LOOKS = {
    'README': [quantised, evaluated, distilled], '6': [has_device_models, submitted_device_models], '7': [explored],
}
