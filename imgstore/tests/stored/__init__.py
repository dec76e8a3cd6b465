"""Stores that were written once, which every later version reads: of format 3, by each backend.

`hdf5-1.14` was written with HDF5 1.14.2 (h5py 3.11), which lays files out otherwise than HDF5 2.0, `hdf5` with that.
"""

import numpy as np

IMAGES = np.arange(5 * 6 * 4 * 3).reshape(5, 6, 4, 3).astype(np.uint8)
MIXED = [IMAGES[0], IMAGES[1, :, :, 0], IMAGES[2], IMAGES[3, :, :, 0].astype(np.uint16) * 257, IMAGES[4, :2]]
LABELS = [3, 1, -4, 2**62, 0]
SINGLE = IMAGES[4, :3, :2], 2, 77  # in the place of the image with id 2
