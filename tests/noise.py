"""A corpus of noise, as small and as incomplete as a test wants it."""
from pathlib import Path

import numpy as np
import soundfile as sf

from asc.data.corpus import load_corpus
from asc.data.layouts import META
from asc.data.names import ClipName

RATE = 800


def noise_corpus(folder, recs=6, snippets=4, n=RATE, subtype='PCM_16', skip=(), seed=0):
    "A corpus of `recs` recordings of `snippets` clips of n samples; `skip` are (recording, snippet) left out"
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    (folder/'audio').mkdir(parents=True)
    rows = ['\t'.join(META)]
    for recording in range(recs):
        for snippet in range(snippets):
            if (recording, snippet) in skip: continue
            number = snippet if snippets > 1 else None
            clip = ClipName('rain', 'oulu', recording//2, recording, number, 'ab'[recording % 2])
            sf.write(folder/str(clip), rng.uniform(-.99, .99, n), RATE, subtype)
            rows.append(f'{clip}\t{clip.scene}\toulu-{clip.location}\t{clip.device}')
    (folder/'meta.csv').write_text('\n'.join(rows))
    return load_corpus(folder)
