"""The part of the build that pyproject.toml cannot say: the extension with the compiled kernels."""

from glob import glob

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup

FOLDER = "hvd_compress/native/cpu"

ParallelCompile(default=0).install()  # on all cores

setup(
    ext_modules=[
        Extension(
            "hvd_compress.native.cpu._kernels",
            sources=sorted(glob(f"{FOLDER}/*.cpp")),
            depends=sorted(glob(f"{FOLDER}/*.hpp") + glob(f"{FOLDER}/*.inc")),
            include_dirs=[pybind11.get_include()],
            # No contraction, so that results have the bits of the other implementations. Nothing reads floating-point
            # traps or errno, and without them comparisons and roundings can be vectorized.
            extra_compile_args=[
                *("-std=c++17", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
                *("-pthread", "-fvisibility=hidden", "-g0"),
            ],
            extra_link_args=["-pthread"],
            optional=True,  # without a compiler the package works, more slowly
        )
    ]
)
