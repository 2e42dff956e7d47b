"""The parts in C, each beside the Python that it does the work of; everything else stands in pyproject.toml.

Where there is no compiler, maskline is installed without them, and does the same in Python.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("schemas._shapes", ["schemas/_shapes.pyx"], optional=True),
        Extension("worker._entries", ["worker/_entries.pyx"], optional=True),
        Extension("worker._order", ["worker/_order.pyx"], optional=True),
    ]
)
