"""The parts in C, each beside the Python that it does the work of; everything else stands in pyproject.toml.

Where there is no compiler, maskline is installed without them, and does the same in Python.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class BuildAnew(build_ext):
    """Leaves nothing of an earlier build where this one fails: it would not fit the Python beside it."""

    def build_extension(self, ext: Extension) -> None:
        inplace = self.get_finalized_command("build_py").get_package_dir("")
        for directory in (self.build_lib, inplace):
            Path(directory, self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().build_extension(ext)


setup(
    cmdclass={"build_ext": BuildAnew},
    ext_modules=[
        Extension(
            "maskline.schemas.fastdecode.native", ["maskline/schemas/fastdecode/native.pyx"], optional=True
        ),
        Extension("maskline.worker.native.entries", ["maskline/worker/native/entries.pyx"], optional=True),
        Extension("maskline.worker.native.order", ["maskline/worker/native/order.pyx"], optional=True),
        Extension("maskline.worker.native.wire", ["maskline/worker/native/wire.pyx"], optional=True),
    ],
)
