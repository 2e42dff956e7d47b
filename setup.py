"""Builds the C extensions of maskline from Cython; everything else about the package stands in pyproject.toml.

Each `.pyx` file is one extension, beside the Python code that does the same work. Without a C compiler they are left
out, and maskline does that work in Python, only slower. With REQUIRE_MASKLINE_C=1 the build fails instead: the image
and release builds set it. (A name that begins with MASKLINE_ is a setting, and an unknown setting stops the start.)
"""

import os
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

REQUIRED = os.environ.get("REQUIRE_MASKLINE_C", "") not in ("", "0")


class BuildExtensions(build_ext):
    """Removes the result of an earlier build first: after a failed build it would not fit the Python beside it."""

    def build_extension(self, ext: Extension) -> None:
        inplace = self.get_finalized_command("build_py").get_package_dir("")
        for directory in (self.build_lib, inplace):
            Path(directory, self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        try:
            super().build_extension(ext)
        except Exception as error:
            if not REQUIRED:
                raise  # setuptools prints a warning, as the extension is optional
            raise SystemExit(
                f"maskline: REQUIRE_MASKLINE_C is set, and the C extension {ext.name} cannot be built: {error}"
            ) from None


setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=[
        Extension(source.removesuffix(".pyx").replace("/", "."), [source], optional=not REQUIRED)
        for source in sorted(glob("maskline/**/*.pyx", recursive=True))  # noqa: PTH207 - Path.glob stops at links
    ],
)
