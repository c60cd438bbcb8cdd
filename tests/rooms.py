"""The rooms of the package, for the tests of the house and of the site."""

# In the order of imports: a room knows those above it. Numbers order the notebooks inside a room.
ROOMS = ['core', 'run', 'data', 'frontend', 'augment', 'backbone', 'model', 'score', 'train', 'teach', 'size', 'export',
         'load', 'experiment', 'use', 'entry', 'bench', 'cli', '__init__']
