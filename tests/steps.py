"""The augmentation of the tests that train: everything random that there is."""

STEPS = [
    {'roll': {'seconds': .1}},
    'resample',
    'mel',
    {'freq_mask': {'size': 48}},
    'log',
    {'freq_mixstyle': {'p': .4, 'alpha': .3}},
    {'mixup': {'alpha': .3}},
]
