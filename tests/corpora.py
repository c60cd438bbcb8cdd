"""Corpora of strangers, which lack what TAU has: one folder of sounds, and tables that tell more or less of them."""
import numpy as np
import pandas as pd
import soundfile as sf
import yaml

RATE = 16000
FIFTY = [f'sound_{i:02d}' for i in range(50)]

# what each table tells of clip i of 200: four scenes, ten users of five clips each, or fifty scenes of four clips
TABLES = {
    'no-devices': dict(location='user{user}', city='{city}'),
    'no-locations': dict(device='{device}', recording='take{user}'),
    'nothing': {},
    'folds': dict(location='user{user}', list='{fold}'),
    'valid-list': dict(device='{device}', location='user{user}', list='{part}'),
    'fifty-scenes': dict(list='{four}'),
    'unlabelled': dict(location='user{user}'),
}


def tells(i):
    "What could be told of clip i"
    user = i // 5
    return dict(user=user, city=('oslo', 'lima')[user % 2], device=('phone', 'zoom')[i % 2], fold=1 + user % 10 % 5,
                four=1 + i % 4, part=('train', 'train', 'train', 'train', 'train', 'train', 'valid', 'test', 'test',
                                      'test')[user % 10])


def scene_of(i, name):
    if name == 'fifty-scenes': return FIFTY[i // 4]
    return '' if name == 'unlabelled' and i % 5 == 4 else ('bus', 'park', 'pub', 'tram')[i // 50]


def write_sounds(folder):
    "200 clips of a second, each scene of a colour of its own"
    rng = np.random.default_rng(0)
    for i in range(200):
        wave = rng.normal(0, .05, RATE) + .1 * np.sin(np.arange(RATE) * (.05 + i // 50 * .2))
        (folder/'sounds').mkdir(parents=True, exist_ok=True)
        sf.write(folder/f'sounds/{i:03d}.wav', wave, RATE)


def describe(folder, name):
    "The table and the description of a corpus of these sounds; the path of the description"
    words = TABLES[name]
    rows = [dict(filename=f'{i:03d}', scene=scene_of(i, name), **{word: text.format(**tells(i)) for word, text in
                                                                  words.items()}) for i in range(200)]
    pd.DataFrame(rows).to_csv(folder/f'{name}.csv', index=False)
    about = dict(title=f'A corpus with {name}', licence='CC0', folder=str(folder), reader='table', table=f'{name}.csv',
                 audio='sounds', suffix='.wav', columns={word: word for word in ('filename', 'scene', *words)})
    if 'location' in words: about['group'] = 'user'
    path = folder/f'{name}.yaml'
    path.write_text(yaml.safe_dump(about), encoding='utf-8')
    return path
