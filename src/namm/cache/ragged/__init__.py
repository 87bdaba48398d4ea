"""The engine for GPUs: ragged storage of a layer, and Triton kernels; needs the extra ``ragged``."""
