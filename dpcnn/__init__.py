"""dpcnn: data-parallel training of convolutional networks on NumPy, MPI and HDF5.

Importing the package settles how BLAS and NumPy compute, which only works before NumPy is loaded: see
:mod:`dpcnn.base.startup`.
"""

from dpcnn.base import startup as startup

__version__ = "0.1.0"
