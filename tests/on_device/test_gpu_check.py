"""`asc gpu-check`, whole and as small as can be: its table, its file, its stages, and what becomes of trouble."""
import json

import noise
import pytest
import torch

import asc.bench.gpu as gpu
from asc.bench.check import Check
from asc.bench.device_parts import within_memory
from asc.cli import main


def noise_list(folder, train, progress):
    "Four seconds of noise, with a training list"
    corpus = noise.noise_corpus(folder, recs=1, n=44100)
    (corpus.dir/'split100.csv').write_text((corpus.dir/'meta.csv').read_text())
    return corpus.dir


@pytest.fixture(scope='module')
def checked(tmp_path_factory):
    "What the command prints, and its file"
    path = tmp_path_factory.mktemp('gpu')/'check.json'
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, 'RATE', 44100)
        patch.setattr(gpu, 'make_synthetic', noise_list)
        patch.setattr('builtins.print', lambda *words, **options: said.append(' '.join(map(str, words))))
        main(['gpu-check', '--tiny', '--out', str(path)])
    return '\n'.join(said), json.loads(path.read_text())


def lines(record, stage):
    "(what, way) -> figures of a stage"
    return {(row['what'], row['way']): row for row in record['rows'] if row['stage'] == stage}


def test_it_says_where_it_was(checked):
    "The device, that it is emulated, the date, the commit"
    said, record = checked
    assert record['device'] == 'emulated:0 (Emulated accelerator)' and record['emulated']
    assert {'driver', 'torch', 'date', 'git', 'corpus', 'clips', 'bs'} <= record.keys()
    assert said.startswith('emulated:0 (Emulated accelerator), torch')


def test_recipe_in_every_way(checked):
    "Each has its rate, memory and time of the recipe; what the device cannot do is said"
    rows = lines(checked[1], 'recipe')
    measured = {way for (_, way), row in rows.items() if 'note' not in row}
    assert measured == {'float32', 'bf16', 'fp16', 'float32, streamed', '3 seeds, stacked'}
    for _, way in [key for key in rows if key[1] in measured]:
        row = rows['cnn3', way]
        assert all(row[name] > 0 for name in ('clips/s', 'ms', 'peak memory, GB', '25 % recipe, minutes'))
    assert rows['cnn3', '3 seeds, stacked']['batch'] == 3 * rows['cnn3', 'float32']['batch']
    assert 'cannot compile for emulated' in rows['cnn3', 'float32, compiled']['note']


def test_other_stages(checked):
    "Peaks, log-mels of two libraries, steps, answers down to int8; the tests are for CUDA"
    said, record = checked
    assert record['peaks'].keys() >= {'float32', 'bf16'} and min(record['peaks'].values()) > 0
    for stage, ways in {
        'log-mel': ['asc', 'torchaudio'], 'step': ['float32', 'bf16'],
        'answer': ['float32', 'bf16', 'int8, reference'],
    }.items():
        assert all(lines(record, stage)['cnn3', way]['clips/s'] > 0 for way in ways)
    assert 'not for emulated' in lines(record, 'tests')['tests', 'pytest']['note']
    table = said.partition('\n\n')[2]
    assert all(words in table for words in ('share of peak, %', '25 % recipe, minutes', 'int8, reference'))


def test_promises(checked):
    "Each is met, or not, or was not measured"
    said, record = checked
    found = {row['promise']: row['verdict'].split(':')[0] for row in record['promises']}
    assert set(found.values()) <= {'met', 'NOT met', 'not measured'}
    assert found['A compiled step is faster than one that is not'] == 'not measured'
    assert all(promise in said for promise in found)


def test_memory_that_ends(emulated, tmp_path):
    "Costs a line, and smaller batches are tried before"
    tried = []
    def measure(bs):
        tried.append(bs)
        return dict(bytes=torch.zeros(1000 * bs, device=emulated.DEVICE).nbytes)
    emulated.memory.capacity = emulated.memory.allocated + 4 * 1000 * 20
    assert within_memory(measure, 64, emulated.DEVICE) == dict(bytes=4 * 1000 * 16) and tried == [64, 32, 16]
    check = Check(emulated.DEVICE, 1, tmp_path/'check.json')
    emulated.memory.capacity = emulated.memory.allocated + 1000
    check.run('s', 1, [('x', 'a', lambda: within_memory(measure, 64, emulated.DEVICE)), ('x', 'b', lambda: {'clips/s': 1.})])
    assert [row.get('note') for row in check.rows] == ['out of memory', None]
