"""What only the HDF5 format needs."""
