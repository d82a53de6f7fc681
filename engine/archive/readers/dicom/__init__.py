"""DICOM: its pixels as they are displayed, and where they lie in space."""
