"""TIFF and BigTIFF, at the depth that is stored."""
