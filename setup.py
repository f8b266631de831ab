"""Builds the C kernels; everything else about the package is in pyproject.toml.

No compiler is asked for: where there is none, the package installs without the library and multiplies with torch.
"""

from glob import glob

from setuptools import Extension, setup

FOLDER = "workers/kernels/native"

setup(
    script_name="setup.py",  # or the build would take this file for a module of the package, since both lie here
    ext_modules=[
        Extension(
            "expertflow.workers.kernels._native",
            sources=sorted(glob(f"{FOLDER}/*.c")),
            depends=sorted(glob(f"{FOLDER}/*.inc") + glob(f"{FOLDER}/*.h")),
            extra_compile_args=["-O3", "-g0"],
            libraries=["m"],
            optional=True,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # it uses nothing of Python: one wheel for all versions
)
