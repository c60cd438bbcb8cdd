"Text is UTF-8, whatever the machine thinks: a corpus of another language under a locale that knows ASCII only."
import os
import subprocess
import sys
import textwrap

import numpy as np
import soundfile as sf

from asc.core import project_root
from asc.data.layouts import META

SCRIPT = '''
    import json, locale, sys, warnings
    from asc.core import read_text
    from asc.data.checking import check_corpus
    from asc.data.corpus import load_corpus
    from asc.data.findings import corpus_remarks, say
    from asc.data.splits import read_split, read_test
    from asc.data.store import pack, Store
    from asc.data.synthetic import make_synthetic, _made_with
    warnings.filterwarnings('error', category=EncodingWarning, module='asc')
    folder, home = sys.argv[1:]
    corpus = load_corpus(folder)
    store = pack(corpus, home, progress=False)
    again = pack(corpus, home, progress=False)
    findings = check_corpus(folder, deep=True, progress=False)
    for remark in corpus_remarks(corpus): say(remark)
    print(ascii([locale.getpreferredencoding(False), corpus.scenes, read_split(corpus, 100).scene.tolist(),
                 read_test(corpus).device.tolist(), len(Store.open(again.folder, 'full')), findings.what.tolist(),
                 'caf\\xe9' in read_text(f'{folder}/meta.csv')]))
'''


def cafe_corpus(folder):
    "A corpus of two scenes, one of them with an accent, and files without"
    (folder/'audio').mkdir(parents=True)
    rows = [(f'audio/cafe-oslo-{i}-{i}-{k}-a.wav', 'café', f'oslo-{i}', 'a') for i in (1, 2) for k in range(2)]
    rows += [(f'audio/bus-oslo-{i}-{i}-{k}-a.wav', 'bus', f'oslo-{i}', 'a') for i in (3, 4) for k in range(2)]
    for name, *_ in rows: sf.write(folder/name, np.zeros(800) + .1, 800)
    parts = {'meta': rows, 'split100': [row[:2] for row in rows if row[2] in ('oslo-1', 'oslo-3')],
             'test': [row[:2] for row in rows if row[2] in ('oslo-2', 'oslo-4')]}
    for name, part in parts.items():
        lines = ['\t'.join(row) for row in [META[:len(part[0])], *part]]
        (folder/f'{name}.csv').write_text('\n'.join(lines), encoding='utf-8')


def test_cafe_stays_cafe(tmp_path):
    "Every text of the data room is opened as UTF-8, and names are shown on a terminal that has no such letters"
    cafe_corpus(tmp_path/'c')
    env = dict(os.environ, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONIOENCODING='ascii',
               PYTHONPATH=str(project_root()))
    words = [sys.executable, '-X', 'warn_default_encoding', '-c', textwrap.dedent(SCRIPT), tmp_path/'c', tmp_path/'s']
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    *said, result = done.stdout.splitlines()
    words = 'scene in meta.csv has other words than the file names'
    assert words + ' (4, such as audio/cafe-oslo-1-1-0-a.wav: caf\\xe9)' in said[-1]
    encoding, scenes, train, devices, clips, findings, accent = eval(result)
    assert encoding != 'utf-8' and scenes == ['bus', 'café'] and train == ['café']*2 + ['bus']*2
    assert (devices, clips, findings, accent) == (['a']*4, 8, [words], True)
